"""Evaluation: folds, methods on the same folds and features, scores, and the report."""
