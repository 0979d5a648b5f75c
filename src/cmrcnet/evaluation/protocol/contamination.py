"""Refuse an artefact that has seen what it is tested on."""

from __future__ import annotations

from collections.abc import Iterable

from cmrcnet.errors import Leakage


def refuse_seen(
    artefact: str,
    *,
    seen_sections: Iterable[str],
    seen_patients: Iterable[str],
    sections: Iterable[str],
    patients: Iterable[str] = (),
) -> None:
    """Raise when a model or bank was made from a section, or from a patient, that it is about to be tested on.

    Parameters
    ----------
    artefact : str
        What the sentence calls it: "The model", "The bank".
    seen_sections, seen_patients : iterable of str
        What its provenance says.
    sections, patients : iterable of str
        What it is about to be tested on. A protocol that knowingly leaves out sections only gives no patients.

    Raises
    ------
    Leakage
    """
    in_sections, in_patients = set(seen_sections), set(seen_patients)
    seen = [f"section {name}" for name in sections if name in in_sections]
    seen += [f"patient {name}" for name in patients if name in in_patients]
    if seen:
        raise Leakage(artefact, seen)
