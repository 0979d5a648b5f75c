"""Re-implementations of what CMRCNet is compared with, one short file a method.

Each is written from its paper, on the same folds, genes, frozen features and seeds as all others, and says in its
docstring where it differs from the original. They are beside `baselines` (gene mean, random spots, ridge).
"""
