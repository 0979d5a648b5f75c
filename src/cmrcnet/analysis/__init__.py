"""Analyses of prediction tables: attribution of predictions, localisation of signatures."""
