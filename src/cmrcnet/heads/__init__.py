"""From image features to expression: PCA, ridge and kernel ridge regression, ensemble, gene decoder."""
