"""Synthetic tissue with known expected expression, and public cohorts."""
