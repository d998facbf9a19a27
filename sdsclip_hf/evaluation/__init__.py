"""From a model and a benchmark to scores with intervals, tables and plots."""
