"""What a detector says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "duplicated counts",
    "duplicated picture",
    "shared picture",
    "same donor",
    "sexes differ",
    "stain",
    "scale",
    "shuffled",
    "misaligned",
]


@dataclass(frozen=True)
class Finding:
    """One thing that a detector found.

    Parameters
    ----------
    kind : str
        Which detector spoke; see `Kind`.
    sections : tuple of str
        The sections concerned, in the cohort's order.
    value : float
        What was measured; the sentence says in which unit.
    threshold : float
        Where the finding begins.
    sentence : str
        What was measured and what to do.
    certain : bool
        A problem (True), or a suspicion that a person must judge (False).
    """

    kind: Kind
    sections: tuple[str, ...]
    value: float
    threshold: float
    sentence: str
    certain: bool = False
