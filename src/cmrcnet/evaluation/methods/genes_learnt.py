"""The genes that a rival's network is trained on; the others are added afterwards (`regression`)."""

from __future__ import annotations

import numpy as np

from cmrcnet.evaluation.methods.method import TrainingData

MOST_GENES = 1000


def genes_learnt(training: TrainingData, most: int = MOST_GENES) -> np.ndarray:
    """Columns of `training.expression` that a network learns: the HVG, the HEG, then the panel, up to `most`.

    The HVG always come first and are always in.

    Parameters
    ----------
    training : TrainingData
    most : int

    Returns
    -------
    numpy.ndarray, shape (genes,), int64
    """
    column = {gene: i for i, gene in enumerate(training.genes)}
    sets = [*training.sets["HVG"], *training.sets["HEG"], *training.panel.genes]
    wanted = list(dict.fromkeys(column[gene] for gene in sets if gene in column))
    return np.array(wanted[: max(most, len(training.sets["HVG"]))], np.int64)
