"""What becomes of a prediction: analyses that read prediction tables and know no model."""
