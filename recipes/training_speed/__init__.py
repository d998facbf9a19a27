"""What `recipes/benchmark_training.py` measures: models, plain loop, rows, and the report."""
