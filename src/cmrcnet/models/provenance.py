"""Where a trained model comes from, so that an evaluation can refuse one that has seen its test patient."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Provenance:
    """What a model has seen and how its training went. Plain values that JSON can write; lists become tuples.

    Parameters
    ----------
    sections, patients : tuple of str
        All that took part: those trained on, those that chose the epoch, those that chose the panel.
    seed : int
    version : str
        Of cmrcnet.
    history : tuple of dict
        One entry an epoch: losses and validation scores by name.
    chosen_epoch : int or None
        Passes over the training spots behind the weights that were kept.
    notes : tuple of str
        Sentences for the reader: what leaked, what collapsed.
    facts : dict
        Anything else worth keeping.
    """

    sections: Sequence[str]
    patients: Sequence[str]
    seed: int = 0
    version: str = ""
    history: Sequence[dict[str, Any]] = ()
    chosen_epoch: int | None = None
    notes: Sequence[str] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("sections", "patients", "history", "notes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values; a number that JSON does not know (nan, inf) becomes None."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Provenance:
        """Build from `to_dict`."""
        return cls(**values)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()  # a NumPy or torch scalar
    return None if isinstance(value, float) and not math.isfinite(value) else value
