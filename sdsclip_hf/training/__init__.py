"""The trainer, its terms, and the main job."""
