"""``bank.json``: which sections a bank is made of, and which search it holds. Replaced whole, in one step.

The other files of a bank never change once they have their names. So whoever read a manifest reads one state of the
bank, whatever is added or dropped meanwhile.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cmrcnet.errors import Damaged, Incompatible, MissingInput
from cmrcnet.storage.atomic import atomic_file
from cmrcnet.storage.hashing import fingerprint

FORMAT = 2
NAME = "bank.json"
PARTS, SEARCH = "parts", "search"
_HINT = "build it again: cmrcnet index MODEL COHORT.csv --out BANK"


@dataclass(frozen=True)
class Manifest:
    """What a bank holds.

    Parameters
    ----------
    model : str
        Fingerprint of the model that made it.
    target_sum : float or "median"
    dim : int
    rank : int or None
    parts : tuple of dict
        `BankPart.facts` of each section and the sums of its small files, in order.
    search : dict or None
        Facts of the stored search; None: exact.
    """

    model: str
    target_sum: float | Literal["median"]
    dim: int
    rank: int | None
    parts: tuple[dict[str, Any], ...]
    search: dict[str, Any] | None = None

    @property
    def fingerprint(self) -> str:
        """Name of the bank's content; the search has no part in it."""
        return bank_fingerprint(self.model, self.target_sum, [part["name"] for part in self.parts])

    @property
    def spots(self) -> int:
        """Spots of all sections."""
        return sum(part["spots"] for part in self.parts)

    def search_text(self) -> str:
        """How the bank is searched, in words."""
        if self.search is None:
            return "searched exactly"
        recall = ", ".join(f"{value:.3f} of the {k} nearest" for k, value in self.search["recall"].items())
        with_ = self.search["measured_with"]
        return (
            f"searched by {self.search['kind']}, which found {recall} spots ({with_['queries']} held-out queries among "
            f"{with_['spots']:,} spots, {self.search['changed']:,} of them added or dropped since)"
        )

    def write(self, folder: Path) -> None:
        """Put it in the place of the one that is there, in one step.

        Parameters
        ----------
        folder : Path

        Raises
        ------
        NoSpace, Unwritable
        """
        facts = {
            "format": FORMAT,
            "model": self.model,
            "target_sum": self.target_sum,
            "dim": self.dim,
            "rank": self.rank,
            "spots": self.spots,
            "parts": list(self.parts),
            "search": self.search,
            "fingerprint": self.fingerprint,
        }
        facts["check"] = fingerprint(facts)
        with atomic_file(folder / NAME) as tmp:
            tmp.write_text(json.dumps(facts, indent=1), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read and check it.

        Parameters
        ----------
        folder : Path

        Raises
        ------
        MissingInput
        Damaged
            It is missing or changed.
        Incompatible
            It has another format.
        """
        path = folder / NAME
        if not folder.is_dir():
            raise MissingInput(folder, "The bank", "build one: cmrcnet index MODEL COHORT.csv --out BANK")
        if not path.is_file():
            raise Damaged(folder, f"{NAME} is missing", _HINT)
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise Damaged(folder, f"{NAME} is cut short or changed", _HINT) from error
        if not isinstance(facts, dict) or facts.get("format") != FORMAT:
            was = facts.get("format") if isinstance(facts, dict) else None
            raise Incompatible.format(folder, was, FORMAT, _HINT)
        if fingerprint({key: value for key, value in facts.items() if key != "check"}) != facts.get("check"):
            raise Damaged(folder, f"{NAME} was changed", _HINT)
        wanted = ("model", "target_sum", "dim", "rank", "search")
        return cls(parts=tuple(facts["parts"]), **{key: facts[key] for key in wanted})


def bank_fingerprint(model: str, target_sum: float | str, parts: list[str]) -> str:
    """Name of a bank's content.

    Parameters
    ----------
    model : str
    target_sum : float or "median"
    parts : list of str
        Name of each section's content, in order.
    """
    return fingerprint({"format": FORMAT, "model": model, "target_sum": target_sum, "parts": parts})
