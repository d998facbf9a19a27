"""What a teacher is worth on pairs whose answer is known: figures, a verdict, a page; before it scores a whole dataset."""
