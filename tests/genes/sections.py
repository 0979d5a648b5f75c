"""Tiny sections without a picture worth looking at, for tests of counts and genes."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from cmrcnet.slides.section import Section, Spots
from cmrcnet.slides.slide import ArraySlide


def section_of(counts, genes, name="A1", patient="P", absent_genes="unmeasured") -> Section:
    """A section of these counts on a small white slide."""
    counts = np.asarray(counts)
    centres = np.column_stack([np.arange(len(counts)) * 10.0 + 5, np.full(len(counts), 20.0)])
    return Section(
        name,
        patient,
        ArraySlide(np.full((40, 10 * len(counts) + 10, 3), 255, np.uint8), 1.0, name),
        Spots(tuple(f"{name}_{number}" for number in range(len(counts))), centres, 8.0),
        sparse.csr_matrix(counts),
        tuple(genes),
        absent_genes,
    )
