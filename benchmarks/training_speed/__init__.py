"""What `benchmarks/training.py` measures: models, plain loop, rows, and the report."""
