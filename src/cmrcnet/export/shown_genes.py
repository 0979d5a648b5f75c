"""Which genes a picture or a map shows, when a table holds thousands."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cmrcnet.errors import TooFew, UnknownName
from cmrcnet.export.stored_prediction import StoredPrediction

FEW = 12
"""So many genes are all shown."""
SHOWN = 6
"""Of more genes, those that vary most."""
_LOOKED_AT = 16
"""Blocks of 256 locations that are looked at for that."""


def genes_to_show(prediction: StoredPrediction, wanted: Sequence[str] | None) -> list[str]:
    """The genes asked for, each once; when none are named, those whose predictions vary most over the slide.

    Parameters
    ----------
    prediction : StoredPrediction
    wanted : sequence of str or None

    Raises
    ------
    UnknownName, TooFew
    """
    known = prediction.genes
    if wanted is not None:
        genes = list(dict.fromkeys(wanted))
        if not genes:
            raise TooFew("genes to show", 0, 1, "name some, or leave them out for those that vary most")
        for gene in genes:
            if gene not in prediction.var.index:
                raise UnknownName("gene in the prediction", gene, known)
        return genes
    if len(known) <= FEW:
        return known
    starts = np.unique(np.linspace(0, max(0, len(prediction) - 256), _LOOKED_AT).astype(int) // 256 * 256)
    sample = np.concatenate([prediction.rows(slice(start, start + 256)) for start in starts])
    deviation = np.nan_to_num(np.where(np.isnan(sample).any(axis=0), np.nan, sample.std(axis=0)), nan=-1.0)
    return [known[column] for column in np.argsort(-deviation, kind="stable")[:SHOWN]]
