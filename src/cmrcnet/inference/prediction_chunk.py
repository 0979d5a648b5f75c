"""What is predicted of locations that follow each other."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from cmrcnet.search.neighbours import Neighbours


@dataclass(frozen=True, eq=False)
class PredictionBlock:
    """Predictions of some locations.

    Parameters
    ----------
    rows : slice
        Of the plan's locations.
    mean : numpy.ndarray, shape (locations, genes), float32
        NaN where there is no prediction: no neighbour's section measured the gene.
    spread : numpy.ndarray, shape (locations, genes), float32, or None
        Among the neighbours; NaN where `mean` is. None where there are no neighbours.
    neighbours : Neighbours or None
        Of these locations.
    layers : dict of array, shape (locations, genes), float32
        Whatever else is said of each location and gene; becomes a layer of the table under its name.
    obs : dict of array, shape (locations,)
        Whatever else is said of each location; becomes a column of `obs` under its name.
    obsm : dict of array, shape (locations, columns)
        And what takes several numbers a location; becomes an array of `obsm`.
    """

    rows: slice
    mean: np.ndarray
    spread: np.ndarray | None = None
    neighbours: Neighbours | None = None
    layers: dict[str, np.ndarray] = field(default_factory=dict)
    obs: dict[str, np.ndarray] = field(default_factory=dict)
    obsm: dict[str, np.ndarray] = field(default_factory=dict)

    def stored_layers(self) -> dict[str, np.ndarray]:
        """Every layer of the table, by name."""
        return ({} if self.spread is None else {"neighbour_std": self.spread}) | self.layers

    def stored_obsm(self) -> dict[str, np.ndarray]:
        """Every array of `obsm`, by name."""
        if self.neighbours is None:
            return self.obsm
        ids = self.neighbours.ids.astype(np.int64, copy=False)
        return {"neighbour_ids": ids, "neighbour_similarity": self.neighbours.similarity} | self.obsm
