"""What a model knows of its own limits, learnt with it and stored beside its weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from cmrcnet.uncertainty.conformal import Calibration
from cmrcnet.uncertainty.gene_reliability import GeneCards
from cmrcnet.uncertainty.nonconformity import Difficulty
from cmrcnet.uncertainty.ood import Domain


@dataclass(frozen=True, eq=False)
class Reliability:
    """What validation predictions tell: how hard locations are, how wide intervals must be, how far each gene goes.

    Parameters
    ----------
    difficulty : Difficulty
    power : numpy.ndarray, shape (rank,)
        Mean square loading of each component, for `difficulty_traits`.
    calibration : Calibration
        Its genes are those of the cards.
    cards : GeneCards
    """

    difficulty: Difficulty
    power: np.ndarray
    calibration: Calibration
    cards: GeneCards


@dataclass(frozen=True, eq=False)
class Trust:
    """The two things that a model can say of a prediction beyond the prediction.

    Parameters
    ----------
    domain : Domain or None
        What its training sections look like.
    reliability : Reliability or None
        None where nothing could be held in, or the config holds in one unit only.
    why_not : str
        Why there is no `reliability`.
    """

    domain: Domain | None
    reliability: Reliability | None
    why_not: str = ""

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it as arrays by name; plain values are JSON in an array of bytes."""
        found: dict[str, np.ndarray] = {}
        facts: dict[str, Any] = {"why_not": self.why_not, "domain": None, "reliability": None}
        if self.domain is not None:
            found |= _under("domain", self.domain.arrays())
            facts["domain"] = self.domain.to_dict()
        if self.reliability is not None:
            each = self.reliability
            found["power"] = each.power
            found |= _under("difficulty", {name: getattr(each.difficulty, name) for name in _DIFFICULTY})
            found |= _under("calibration", {name: getattr(each.calibration, name) for name in _CALIBRATION})
            found |= _under("cards", each.cards.arrays())
            facts["reliability"] = {"calibration": each.calibration.facts, "cards": each.cards.facts}
            facts["genes"] = list(each.cards.genes)
        found["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
        return found

    @classmethod
    def restore(cls, arrays: dict[str, np.ndarray]) -> Trust:
        """The opposite of `arrays`."""
        facts = json.loads(bytes(arrays["facts"]))
        domain = reliability = None
        if facts["domain"] is not None:
            domain = Domain.restore(_of(arrays, "domain"), facts["domain"])
        if facts["reliability"] is not None:
            known = facts["reliability"]
            reliability = Reliability(
                Difficulty(**_of(arrays, "difficulty")),
                arrays["power"],
                Calibration(**_of(arrays, "calibration"), facts=known["calibration"]),
                GeneCards(tuple(facts["genes"]), **_of(arrays, "cards"), facts=known["cards"]),
            )
        return cls(domain, reliability, facts["why_not"])


_DIFFICULTY = ("middle", "deviation", "weights")
_CALIBRATION = ("low", "high", "factors")


def _under(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{prefix}.{name}": values for name, values in arrays.items()}


def _of(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    cut = f"{prefix}."
    return {name.removeprefix(cut): values for name, values in arrays.items() if name.startswith(cut)}
