"""Trained models that several methods, or cells of a sweep, read: what differs in the readout alone is trained once.

The readout of a recipe (`readout.*`) says how an embedded patch becomes a prediction. Training reads it in one place
only, to score the epochs on the held-in unit. On a shelf the epoch stays the one that the first cell's readout chose,
so that every further cell reads the same network; a run without a shelf chooses its epoch by its own readout.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cmrcnet.fingerprint import fingerprint
from cmrcnet.recipe import Recipe

if TYPE_CHECKING:
    from cmrcnet.expression.panel import GenePanel
    from cmrcnet.model.trained_model import TrainedModel
    from cmrcnet.tissue.section import Cohort

NOT_TRAINING = ("name", "about", "readout")
"""Parts of a recipe that do not make another network."""


class ModelShelf:
    """A folder of trained models, found by what they were trained with.

    Parameters
    ----------
    folder : Path
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    @staticmethod
    def training_of(recipe: Recipe) -> str:
        """Name of all in a recipe that makes another network."""
        return fingerprint({key: value for key, value in recipe.to_dict().items() if key not in NOT_TRAINING})

    def trained(
        self, recipe: Recipe, panel: GenePanel, cohort: Cohort, train: Callable[[], TrainedModel]
    ) -> TrainedModel:
        """The model of this training: from the shelf, or trained now and put there.

        Parameters
        ----------
        recipe : Recipe
            Its readout goes with the model that is handed out.
        panel : GenePanel
        cohort : Cohort
            Training sections; named alike, they are taken to be alike (a shelf belongs to one run of one cohort).
        train : callable
            Trains it.
        """
        from cmrcnet.model.trained_model import TrainedModel

        name = fingerprint([self.training_of(recipe), panel.to_dict(), cohort.name, list(cohort.sections)])
        place = self.folder / name
        if place.is_dir():
            return dataclasses.replace(TrainedModel.load(place), recipe=recipe)
        model = train()
        model.save(place)
        return model
