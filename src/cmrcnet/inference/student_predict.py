"""Predict expression on a slide by a distilled student, without a bank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cmrcnet.inference.predict import table_of
from cmrcnet.inference.student_plan import plan_student
from cmrcnet.slides.section import Spots
from cmrcnet.slides.slide import Slide
from cmrcnet.slides.tissue_mask import TissueMask

if TYPE_CHECKING:
    from anndata import AnnData

    from cmrcnet.models.student import Student
    from cmrcnet.storage.cache import TokenCache


def predict_by_student(
    student: Student,
    slide: Slide,
    *,
    spots: Spots | None = None,
    mask: TissueMask | None = None,
    genes: Sequence[str] | None = None,
    grid_um: float = 100.0,
    cache: TokenCache | None = None,
) -> AnnData:
    """Predict expression at locations of a slide, without search.

    Parameters
    ----------
    student : Student
    slide : Slide
        Its mpp must be known.
    spots : Spots, optional
        Locations to predict; a grid over the tissue when left out.
    mask : TissueMask, optional
        Where the tissue is; found on the slide when left out.
    genes : sequence of str, optional
        Genes to predict, in this order; every gene that the teacher's bank measured when left out.
    grid_um : float
        Distance between the locations of the grid.
    cache : TokenCache, optional
        Where what the frozen encoder sees is kept from one call to the next.

    Returns
    -------
    anndata.AnnData
        The prediction table (`genes.table`), without spread, neighbours, intervals and attributions: those are the
        bank's to give.

    Raises
    ------
    UnknownName, TooFew
        Genes that the teacher's bank does not know; no genes; no locations.
    SectionError, ScaleError, TooFew

    Warns
    -----
    CmrcnetWarning
        The slide does not look like the sections that the teacher was trained on.
    """
    return table_of(plan_student(student, slide, spots=spots, mask=mask, genes=genes, grid_um=grid_um), cache)
