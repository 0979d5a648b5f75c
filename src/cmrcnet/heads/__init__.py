"""From what is seen of a spot to expression components: ridge, kernel ridge, and their ensemble with retrieval."""
