"""Damaged and hostile files for every loader: `python -m tests.fuzz --minutes 30` runs a long campaign."""
