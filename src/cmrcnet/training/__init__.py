"""Pairs, the training loop, its checkpoints, and the meter that says when a run only guesses."""
