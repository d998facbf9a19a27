"""The families of text-to-image diffusion models that can be teachers, by the class of their pipeline."""
