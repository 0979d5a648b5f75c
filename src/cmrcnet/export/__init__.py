"""Predictions on disk: the table filled block by block, and what other programs read of it."""
