"""What every other folder may use: errors, files of the package, whole checkpoints, processes."""
