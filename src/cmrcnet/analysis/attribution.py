"""The attribution of one predicted place: the measured spots that were averaged for it, and how much each one
counts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cmrcnet.errors import Damaged, NotAvailable, UnknownName
from cmrcnet.genes.table import STUDENT

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

_HINT = "predict again with this version of cmrcnet"


@dataclass(frozen=True, eq=False)
class Attribution:
    """Where one prediction comes from.

    Parameters
    ----------
    place : str
    row : int
        Of the prediction table.
    spots : pandas.DataFrame
        One row a measured spot, most similar first: section, patient, barcode, x, y (level-0 px of that section's
        slide), similarity, weight. The weights sum to 1.
    patient_weights : dict of str to float
        Share of the weight per patient, largest first.
    parts : dict of str to float
        Share of each part of the head in the prediction. The spots account for "retrieval" alone.
    """

    place: str
    row: int
    spots: pd.DataFrame
    patient_weights: dict[str, float]
    parts: dict[str, float]

    @property
    def sentence(self) -> str:
        """What the attribution explains, and what not."""
        share = self.parts.get("retrieval", 0.0)
        if share == 1:
            return "The prediction is the weighted mean of these spots, and of nothing else."
        others = [f"{part:.0%} {_SPOKEN.get(name, name)}" for name, part in self.parts.items() if name != "retrieval"]
        rest = " and ".join(others)
        if share == 0:
            return (
                f"The prediction is {rest}: learnt from all training spots together, so no single spots stand behind "
                "it. These are the measured spots that look most alike."
            )
        return (
            f"These spots account for the retrieval, {share:.0%} of the prediction. The rest ({rest}) was learnt from "
            "all training spots together, and no single spots stand behind it."
        )


_SPOKEN = {"ridge": "ridge regression", "kernel": "kernel ridge regression"}


def attribution(table: AnnData, place: str) -> Attribution:
    """The attribution of one location of a prediction table.

    Parameters
    ----------
    table : AnnData
        Prediction table.
    place : str
        Its name in `obs_names`.

    Returns
    -------
    Attribution

    Raises
    ------
    UnknownName
        No such place.
    NotAvailable
        A student made the prediction.
    Damaged
        The table names no neighbours, or is of an older version.
    """
    names = list(map(str, table.obs_names))
    if place not in names:
        raise UnknownName("place in the prediction", place, names)
    told: dict[str, Any] = table.uns.get("cmrcnet", {})
    if STUDENT in told:
        raise NotAvailable.from_sentence(
            f"The prediction of {told.get('slide', 'this slide')} was made by a student, which has no attributions; "
            "predict with MODEL and --bank for these."
        )
    lacking = [key for key in ("neighbour_ids", "neighbour_similarity", "neighbour_weight") if key not in table.obsm]
    if lacking or "neighbour_spots" not in told or "head_weights" not in told:
        why = f"it lacks {', '.join(lacking) or 'neighbour_spots or head_weights'}, so nothing can be explained"
        raise Damaged("The prediction table", why, _HINT)
    row = names.index(place)
    ids = np.asarray(table.obsm["neighbour_ids"][row])
    spots = told["neighbour_spots"].loc[[str(each) for each in ids]].reset_index(drop=True)
    spots = spots.assign(
        similarity=np.asarray(table.obsm["neighbour_similarity"][row], np.float64),
        weight=np.asarray(table.obsm["neighbour_weight"][row], np.float64),
    )
    patient_weights = (
        spots.groupby("patient", sort=False, observed=True)["weight"].sum().sort_values(ascending=False, kind="stable")
    )
    parts = json.loads(told["head_weights"])
    return Attribution(
        place, row, spots, {str(patient): float(share) for patient, share in patient_weights.items()}, parts
    )
