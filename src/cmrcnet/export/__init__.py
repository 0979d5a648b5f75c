"""Prediction tables on disk, and their export to other programs."""
