"""From any source of pictures and captions to batches of tensors."""
