"""Calibration of predictions: intervals, reliability of genes, out-of-distribution detection."""
