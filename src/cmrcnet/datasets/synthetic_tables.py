"""Tables other than counts, planted in synthetic tissue, so that the right answer is known.

Three quarters of the features follow what the picture shows (``traits @ weights``), the others are noise alone. Every
section has a level and a spread of its own in a continuous table, as stains do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse

from cmrcnet.datasets.synthetic import synthetic_truth
from cmrcnet.errors import BadOption
from cmrcnet.slides.section import Cohort, Section
from cmrcnet.slides.table_kinds import TableKind, table_kind

CELLS = 40
"""Cells of a location, of which proportions are counted."""


@dataclass(frozen=True, eq=False)
class PlantedTable:
    """A section with a planted table.

    Parameters
    ----------
    section : Section
        With the table in place of the counts.
    truth : numpy.ndarray, shape (spots, features), float64
        What the picture tells of each feature, before noise: its level, log-odds or, of proportions, log-ratio.
    linked : numpy.ndarray, shape (features,), bool
        Which features follow the picture.
    """

    section: Section
    truth: np.ndarray
    linked: np.ndarray


def plant_table(section: Section, kind: TableKind, *, features: int = 12, noise: float = 0.7) -> PlantedTable:
    """Put a table of another kind in place of the counts of a synthetic section.

    The links are the same in every section; the noise is drawn by the name of the section's plan.

    Parameters
    ----------
    section : Section
        Of `synthetic_cohort` or `synthetic_section`.
    kind : {"continuous", "proportions", "binary"}
        Of the table.
    features : int
        Columns, at least 4.
    noise : float
        Deviation of the noise of a continuous table, where the links have 1.

    Returns
    -------
    PlantedTable

    Raises
    ------
    BadOption
        The section has no plan; too few features; the kind is counts.

    Examples
    --------
    >>> from cmrcnet import synthetic_cohort
    >>> planted = plant_table(synthetic_cohort(patients=1, spots=12).read("P1S1"), "proportions", features=4)
    >>> planted.section.table_kind, planted.section.counts.sum(axis=1).round(6).ravel().tolist()[0][:2]
    ('proportions', [1.0, 1.0])
    """
    if table_kind(kind) == "counts":
        raise BadOption(
            "kind", kind, want="continuous, proportions or binary; a synthetic section holds counts already"
        )
    if features < 4:
        raise BadOption("features", features, want="4 or more")
    traits = synthetic_truth(section).traits
    names = tuple(f"feature-{number + 1:02d}" for number in range(features))
    linked = np.arange(features) % 4 != 3
    weights = np.random.default_rng(17).normal(size=(traits.shape[1], features)) * linked
    level = (traits - 0.5) @ weights
    level = level / np.where(linked, np.sqrt(0.08 * (weights**2).sum(axis=0)), 1.0)
    random = np.random.default_rng(list(section.metadata["synthetic"].encode()))
    if kind == "continuous":
        values = level + noise * random.normal(size=level.shape)
        values = values * random.uniform(0.5, 2.0, features) + random.normal(0, 2, features)
    elif kind == "binary":
        values = (random.uniform(size=level.shape) < 1 / (1 + np.exp(-1.5 * level))).astype(np.float64)
    else:
        shares = np.exp(level) / np.exp(level).sum(axis=1, keepdims=True)
        values = random.multinomial(CELLS, shares) / CELLS
        level = level - level.mean(axis=1, keepdims=True)
    table = sparse.csr_matrix(values.astype(np.float32))
    planted = replace(section, counts=table, genes=names, absent_genes="unmeasured", table_kind=kind)
    return PlantedTable(planted, level, linked)


def planted_cohort(cohort: Cohort, kind: TableKind, *, features: int = 12, noise: float = 0.7) -> Cohort:
    """A synthetic cohort whose sections hold planted tables (see `plant_table`)."""
    tables = [plant_table(section, kind, features=features, noise=noise).section for section in cohort]
    return Cohort.of(tables, f"{cohort.name}, {kind}")
