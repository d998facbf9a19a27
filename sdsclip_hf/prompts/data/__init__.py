"""Labelled pictures for prompt tuning: sources, few-shot picks, halves of the classes, templates, attributes."""
