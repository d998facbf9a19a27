"""What evaluations found, to be looked at: a page of the items and their scores, and a table over many of them."""
