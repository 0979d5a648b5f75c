"""One location of a prediction table on disk, without reading the rest: tables of whole slides may not fit in
memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cmrcnet.errors import BadInput, MissingInput, UnknownName

if TYPE_CHECKING:
    from anndata import AnnData


def read_location(path: Path, place: str) -> AnnData:
    """Read a location's row of a prediction table, and what the table tells of all locations.

    Parameters
    ----------
    path : Path
        The .h5ad.
    place : str
        Name of the place, as in `obs_names`.

    Returns
    -------
    anndata.AnnData
        One row: X, obs, obsm; var and uns as they are; no layers.

    Raises
    ------
    MissingInput, BadInput
    UnknownName
        No such place.
    """
    import anndata
    import h5py
    from anndata.io import read_elem

    if not path.is_file():
        raise MissingInput(path, "The prediction table")
    try:
        with h5py.File(path, "r") as file:
            obs = read_elem(file["obs"])
            names = list(map(str, obs.index))
            if place in names:
                only = slice(names.index(place), names.index(place) + 1)
                return anndata.AnnData(
                    X=np.asarray(file["X"][only]),
                    obs=obs.iloc[only],
                    var=read_elem(file["var"]),
                    obsm={name: np.asarray(values[only]) for name, values in file["obsm"].items()},
                    uns=read_elem(file["uns"]),
                )
    except (OSError, KeyError, TypeError) as error:
        lines = str(error).splitlines()
        raise BadInput(path, "a prediction table", lines[0][:120] if lines else type(error).__name__) from error
    raise UnknownName("place in the prediction", place, names)
