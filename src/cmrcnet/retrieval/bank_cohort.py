"""The cohort that a bank was built from, found again by what the bank remembers of it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from cmrcnet.errors import BadOption, MissingInput
from cmrcnet.readers.cohort import read_cohort
from cmrcnet.retrieval.bank import ReferenceBank
from cmrcnet.slides.section import Cohort

_HINT = "name the cohort.csv that it was built from: --cohort FILE"


def cohort_of_bank(bank: ReferenceBank, *, controls: Literal["drop", "keep"] = "drop") -> Cohort:
    """The bank's sections, in its order, each from the cohort file that it was read from.

    Parameters
    ----------
    bank : ReferenceBank
    controls : {"drop", "keep"}
        As `read_cohort`.

    Raises
    ------
    BadOption
        The bank does not know (it was built from sections in memory, or by an older version), or the file names the
        section no more.
    MissingInput
        The file is not there any more.
    """
    read: dict[str, Cohort] = {}
    entries = []
    for part in bank.parts:
        if not part.source:
            want = f"the cohort.csv that the bank was built from: it does not remember where section {part.section} is"
            raise BadOption("--cohort", "left out", want=want)
        if not Path(part.source).is_file():
            raise MissingInput(Path(part.source), f"The cohort of section {part.section}", _HINT)
        if part.source not in read:
            read[part.source] = read_cohort(part.source, controls=controls)
        if part.section not in read[part.source].sections:
            want = f"a file that names section {part.section}, as it did when the bank was built; {_HINT}"
            raise BadOption("the bank's cohort", part.source, want=want)
        entries += read[part.source].only([part.section]).entries
    return Cohort("bank", tuple(entries))
