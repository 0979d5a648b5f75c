"""From a measured section to a part of a bank."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cmrcnet.errors import BadOption
from cmrcnet.genes.normalise import check_counts, normalize
from cmrcnet.heads.gene_decoder import SectionStatistics
from cmrcnet.retrieval.bank_part import BankPart
from cmrcnet.slides.section import Section

if TYPE_CHECKING:
    from cmrcnet.models.trained_model import TrainedModel


def embed_part(model: TrainedModel, section: Section, source: str = "") -> BankPart:
    """One section as a part of a bank, in memory.

    Parameters
    ----------
    model : TrainedModel
    section : Section
    source : str
        The cohort file that names it.

    Raises
    ------
    GenesError, SectionError
    BadOption
        The model makes vectors that are not finite.
    """
    import pandas as pd

    check_counts(section.counts, section.name)
    expression = normalize(section.counts, model.panel.target_sum).tocsc()
    expression.sort_indices()
    vectors, scores = model.embed_section(model.panel.select(section))
    require_finite(vectors, section.name)
    x, y = section.spots.centre_px.T
    return BankPart(
        section=section.name,
        patient=section.patient,
        spots=pd.DataFrame({"barcode": list(section.spots.barcodes), "x": x, "y": y}),
        vectors=vectors,
        expression=expression.astype(np.float32, copy=False),
        genes=section.genes,
        measures_all=section.absent_genes == "zero",
        scores=scores,
        moments=None if scores is None else SectionStatistics.of(expression, scores),
        source=source,
    )


def require_finite(vectors: np.ndarray, section: str) -> None:
    """Refuse vectors with NaN or infinite numbers: `BadOption`."""
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(broken):
        raise BadOption(
            f"vector of spot number {broken[0] + 1} of section {section} ({len(broken)} in all)",
            "not finite (NaN or infinite)",
            want="numbers only; the model is damaged or its training diverged, so train it again",
        )
