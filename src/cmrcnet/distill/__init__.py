"""Distillation: a small student learns to say what a model and its bank say, and is measured against them."""
