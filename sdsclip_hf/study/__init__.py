"""Arms x seeds from the same starts, with intervals."""
