"""Read a prediction out of the neighbours: `search.average` with torch's faster sum of rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.nn.functional import embedding_bag

from cmrcnet.config import HeadConfig
from cmrcnet.retrieval.bank import ReferenceBank
from cmrcnet.search.average import RowSums, average, average_blocks
from cmrcnet.search.neighbours import Neighbours


def read_out(
    neighbours: Neighbours, bank: ReferenceBank, config: HeadConfig, columns: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Average the neighbours' measured expression, as the config says.

    Parameters
    ----------
    neighbours : Neighbours
        (queries, k) rows of the bank.
    bank : ReferenceBank
    config : HeadConfig
        `weighting` and `temperature`; the neighbours were found with its `k`.
    columns : array of int, optional
        Columns of the bank to average, in this order; all when left out.

    Returns
    -------
    mean, spread : numpy.ndarray, shape (queries, columns), float32
        NaN where no neighbour's section measured the gene.
    """
    return average(neighbours, bank.expression, columns=columns, **_how(bank, config))


def read_out_blocks(
    neighbours: Neighbours, bank: ReferenceBank, config: HeadConfig, columns: np.ndarray | None = None
) -> Iterator[tuple[slice, np.ndarray, np.ndarray | None]]:
    """As `read_out`, some genes of all queries at a time, for predictions that do not fit in memory.

    Parameters
    ----------
    neighbours : Neighbours
    bank : ReferenceBank
    config : HeadConfig
    columns : array of int, optional
        As in `read_out`.

    Yields
    ------
    place : slice
        Of `columns` (of all genes without it), one behind the other.
    mean, spread : numpy.ndarray, shape (queries, genes of the slice), float32
    """
    return average_blocks(neighbours, bank.expression, columns=columns, **_how(bank, config))


def _how(bank: ReferenceBank, config: HeadConfig) -> dict[str, Any]:
    """How a bank's expression is averaged, whole or block by block."""
    return {
        "weighting": config.weighting,
        "temperature": config.temperature,
        "section_of_spot": bank.section_of_spot,
        "measured": bank.measured,
        "row_sums": bag_row_sums,
    }


def bag_row_sums(ids: np.ndarray, weights: np.ndarray, bank: int) -> RowSums:
    """Sum rows as an embedding bag: on a CPU the fastest of all that `benchmarks/retrieval.py` compares.

    Parameters
    ----------
    ids, weights : arrays, shape (queries, k)
    bank : int
        Rows of every block.
    """
    rows, weight = torch.from_numpy(np.ascontiguousarray(ids)), torch.from_numpy(weights)

    def sums(block: np.ndarray) -> np.ndarray:
        return embedding_bag(rows, torch.from_numpy(block), mode="sum", per_sample_weights=weight).numpy()

    return sums
