"""Slides and their patches, tissue mask and query grid; spots, sections and cohorts."""
