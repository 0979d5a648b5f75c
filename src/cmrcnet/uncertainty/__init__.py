"""Whether to believe a prediction: how certain each location is, how far each gene can go, and what the bank knows."""
