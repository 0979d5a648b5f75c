"""Outcomes of patients (survival, subtype) from what slides predict: cohort, pooling, models, metrics, protocol."""
