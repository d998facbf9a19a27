"""The models that train: CLIP with its latent mapper; and dual encoders that are only scored."""
