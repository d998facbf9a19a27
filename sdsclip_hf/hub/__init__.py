"""Commits to the Hub that are whole or not made, and Spaces."""
