"""Training spots that are not trained on, so that the epoch can be chosen: a whole patient or section."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass

import numpy as np

from cmrcnet.config import Config
from cmrcnet.errors import CmrcnetWarning
from cmrcnet.training.data import Pairs

log = logging.getLogger("cmrcnet")

SPOTS_SHARE = 0.2
"""Share of the spots held in by ``train.validation: spots``."""

MOST_GROUPS = 5
"""Groups that the units are held in by, at most."""

_DRAW = 0x4E1D
"""Sets the choice of the validation unit apart from other draws of the same seed."""


@dataclass(frozen=True, eq=False)
class ValidationSplit:
    """A split of the training pairs.

    Parameters
    ----------
    ids : numpy.ndarray of int64
        Pairs that choose the epoch, in a seeded random order; empty when the last epoch is kept.
    rest : numpy.ndarray of int64
        Pairs that are trained on, ascending. Their spots are the bank that validation patches are retrieved from.
    name : str
        For people: "patient P2", "section C4", "97 random spots", "nothing".
    """

    ids: np.ndarray
    rest: np.ndarray
    name: str

    def __bool__(self) -> bool:
        return len(self.ids) > 0


def choose_validation(pairs: Pairs, config: Config) -> ValidationSplit:
    """Choose what is held in, by `train.validation`, `evaluation.group_by` and the seed.

    With one training patient a section is held in. With one training section there is no unit to hold in; loose spots
    of the section that is trained on would only choose the epoch that knows that section best, so the last epoch is
    kept, and a warning says so.
    """
    everything, kind = np.arange(len(pairs)), config.train.validation
    rng = np.random.default_rng([config.train.seed, _DRAW])
    if kind == "none":
        return ValidationSplit(everything[:0], everything, "nothing")
    if kind == "spots":
        count = max(1, round(SPOTS_SHARE * len(pairs)))
        return _split(rng.permutation(everything)[:count], everything, f"{count} random spots", rng)

    labels, unit = pairs.patients, "patient"
    if config.evaluation.group_by == "section" or len(set(labels)) < 2:
        labels, unit = pairs.sections, "section"
    units = list(dict.fromkeys(labels))
    if len(units) < 2:
        warnings.warn(
            f"There is one training section only ({pairs.sections[0]}), so none can be held in to choose the epoch and "
            "the last epoch is kept. Train on two sections or more, or set train.validation to none to say so.",
            CmrcnetWarning,
            stacklevel=3,
        )
        return ValidationSplit(everything[:0], everything, "nothing")
    chosen = units[int(rng.integers(len(units)))]
    inside = np.array([label == chosen for label in labels])[pairs.section_of]
    log.info("The epoch is chosen on %s %s (%d spots), held in from training.", unit, chosen, inside.sum())
    return _split(everything[inside], everything, f"{unit} {chosen}", rng)


def each_validation_group(pairs: Pairs, config: Config) -> tuple[ValidationSplit, ...]:
    """Every unit held in once, for `train.validation: each`; more than five units are put into five groups.

    Parameters
    ----------
    pairs : Pairs
    config : Config
        Its `evaluation.group_by`, and the seed that draws the groups.

    Returns
    -------
    tuple of ValidationSplit
        Empty where there is one training section only: a warning says that nothing could be chosen.
    """
    everything = np.arange(len(pairs))
    rng = np.random.default_rng([config.train.seed, _DRAW])
    unit = pairs.units(config.evaluation.group_by)
    names = list(dict.fromkeys(unit.tolist()))
    if len(names) < 2:
        warnings.warn(
            f"There is one training section only ({pairs.sections[0]}), so none can be held in: the last epoch, middle "
            "penalties and an even ensemble are kept. Train on two sections or more.",
            CmrcnetWarning,
            stacklevel=3,
        )
        return ()
    order = [names[i] for i in rng.permutation(len(names))] if len(names) > MOST_GROUPS else names
    groups = [order[start::MOST_GROUPS] for start in range(min(MOST_GROUPS, len(order)))]
    log.info("Epoch, penalties and ensemble are chosen on %d groups of validation units.", len(groups))
    return tuple(_split(everything[np.isin(unit, group)], everything, ", ".join(group), rng) for group in groups)


def _split(chosen: np.ndarray, everything: np.ndarray, name: str, rng: np.random.Generator) -> ValidationSplit:
    # In mixed order: batches of neighbouring spots would make the contrastive loss harder than it is in training.
    return ValidationSplit(rng.permutation(chosen), np.setdiff1d(everything, chosen), name)
