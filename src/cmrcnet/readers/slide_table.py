"""A table with one row a slide: serum markers, radiomics, mutations of a patient, beside the slide of the patient.

    id,image,patient,group,CRP,albumin
    S1,S1.tif,anna,g1,3.1,41

`id` (or `slide`) names the row, `image` is the path of the slide, relative to the table. A cohort file has one row for
each **group** of slides, which folds leave out together: its `library` is a value of the column `group`. `patient`
must not be in two groups, and is recorded in what is made of the group; without it, the name of the row is. Every other
column is a feature, as in `feature_table`.

The slides of a group are one section (`slides.slide_stack`), each slide one spot: the mean of its locations,
`spot_diameter_um` apart (200 um when left out).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import sparse

from cmrcnet.errors import BadInput, BadOption, UnknownName
from cmrcnet.readers.feature_table import ID_COLUMNS, named_features, read_frame
from cmrcnet.readers.raw_section import RawSection
from cmrcnet.readers.registry import SectionSource, register_reader
from cmrcnet.slides.section import repeated
from cmrcnet.slides.slide import open_slide
from cmrcnet.slides.slide_stack import SlideStack

WHAT = "a table of slides"
PITCH_UM = 200.0
NAMES = ("slide", "patient", "group")
"""Columns that are names, also where they look like numbers."""
BESIDE = ("image", "patient", "group")


def never(path: Path) -> bool:
    """No file is recognised as one: a table of slides looks like a cohort file, so `format` states it."""
    return False


@register_reader("slide_table", recognises=never)
def read_slide_table(source: SectionSource) -> RawSection:
    """Read the slides of one group and their rows.

    Raises
    ------
    BadInput, BadOption, UnknownName, ScaleError, TooFew
    """
    if source.spots is not None or source.image is not None:
        raise BadOption("image, spots", "given", want="nothing: the table names the image of every slide")
    frame = read_frame(source.path, ID_COLUMNS + NAMES)
    frame.columns = [name.lower() if name.lower() in ("slide", "id", *BESIDE) else name for name in frame.columns]
    if twice := repeated(list(frame.columns)):
        raise BadInput(source.path, WHAT, f"two columns are named {twice[0]!r}")
    if "slide" in frame.columns and "id" in frame.columns:
        raise BadInput(source.path, WHAT, "it has both a column id and a column slide; keep the one that names the row")
    frame = frame.rename(columns={"slide": "id"})
    if "image" not in frame.columns:
        raise BadInput.columns(source.path, ["image"], list(frame.columns))
    for column in NAMES[1:]:
        if column in frame.columns and not all(frame[column]):
            row = list(frame[column]).index("") + 1
            raise BadInput(source.path, WHAT, f"row {row} below the header has an empty {column}")
    names, features, values, notes = named_features(frame, source.path, BESIDE)
    kept, patients = np.arange(len(names)), list(frame["patient"]) if "patient" in frame.columns else names
    if "group" in frame.columns:
        groups = frame["group"].to_numpy()
        if "patient" in frame.columns:
            for patient, rows in frame.groupby("patient", sort=False).groups.items():
                if len(set(groups[list(rows)])) > 1:
                    why = f"patient {patient} is in several groups, and folds would leak; give each patient one group"
                    raise BadInput(source.path, WHAT, why)
        if source.library is None:
            want = f"one of {', '.join(dict.fromkeys(groups))}: the group of slides that the row of the cohort is"
            raise BadOption("library", None, want=want)
        if source.library not in groups:
            raise UnknownName(f"group in {source.path.name}", source.library, list(dict.fromkeys(groups)))
        kept = np.flatnonzero(groups == source.library)
    elif source.library is not None:
        raise BadInput.columns(source.path, ["group"], list(frame.columns))
    name = source.name or source.library or source.path.stem
    slides = [
        open_slide(source.path.parent / str(frame["image"].iloc[row]), mpp=source.mpp, name=names[row]) for row in kept
    ]
    stack, pitch = SlideStack(slides, name), source.spot_diameter_um or PITCH_UM
    spots = stack.spots([names[row] for row in kept], pitch_um=pitch)
    notes.append(f"One row a slide: {len(kept)} slides, the features of each the mean of {pitch:g} um apart locations.")
    return RawSection(
        name=name,
        patient=None,
        slide=stack,
        barcodes=spots.barcodes,
        centre_px=spots.centre_px,
        diameter_um=pitch,
        counts=sparse.csr_matrix(values[kept]),
        genes=features,
        absent_genes="unmeasured",
        pitch_um=(0.0, np.inf),
        table_kind=source.table_kind or "counts",
        members=spots.members,
        notes=tuple(notes),
        patients_within=tuple(dict.fromkeys(patients[row] for row in kept)),
    )
