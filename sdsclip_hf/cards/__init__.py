"""The model card of a finished run, and its push."""
