"""Distillation: fit a student to the predictions of a model and its bank, and report how close and how fast it is."""
