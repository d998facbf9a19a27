"""The frozen diffusion models that are distilled."""
