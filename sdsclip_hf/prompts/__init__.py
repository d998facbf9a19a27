"""Prompt tuning of a frozen CLIP: learners, losses, the trainer, labelled data and the protocols."""
