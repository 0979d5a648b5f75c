"""Trained models that several methods, or cells of a sweep, read: what differs in the head alone is trained once.

The head of a config (`head.*`) says how an embedded patch becomes a prediction. Training reads it in one location
only, to score the epochs on the validation unit. On a shelf the epoch stays the one that the first cell's head chose,
so that every further cell reads the same network; a run without a shelf chooses its epoch by its own head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cmrcnet.config import Config
from cmrcnet.storage.hashing import fingerprint

if TYPE_CHECKING:
    from cmrcnet.genes.gene_sets import GenePanel
    from cmrcnet.models.trained_model import TrainedModel
    from cmrcnet.slides.section import Cohort

NOT_TRAINING = ("name", "about", "head")
"""Parts of a config that do not make another network."""


class ModelShelf:
    """A folder of trained models, found by what they were trained with.

    Parameters
    ----------
    folder : Path
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    @staticmethod
    def training_of(config: Config) -> str:
        """Name of all in a config that makes another network."""
        return fingerprint({key: value for key, value in config.to_dict().items() if key not in NOT_TRAINING})

    def trained(
        self, config: Config, panel: GenePanel, cohort: Cohort, train: Callable[[], TrainedModel]
    ) -> TrainedModel:
        """The model of this training: from the shelf, or trained now and put there.

        Parameters
        ----------
        config : Config
            Its head goes with the model that is handed out.
        panel : GenePanel
        cohort : Cohort
            Training sections; named alike, they are taken to be alike (a shelf belongs to one run of one cohort).
        train : callable
            Trains it.
        """
        from cmrcnet.models.trained_model import TrainedModel

        name = fingerprint([self.training_of(config), panel.to_dict(), cohort.name, list(cohort.sections)])
        place = self.folder / name
        if place.is_dir():
            return dataclasses.replace(TrainedModel.from_pretrained(place), config=config)
        model = train()
        model.save_pretrained(place)
        return model
