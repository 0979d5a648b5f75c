"""Tissue: slides, spots and the patches cut around them."""
