"""Models and functions that order candidate captions by one score each, beside the diffusion teachers."""
