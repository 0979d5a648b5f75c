"""Synthetic tissue with known expected expression.

Image and counts come from one hidden anatomy. Some genes follow what the image shows, others do not
(`synthetic_anatomy.synthetic_genes`), so that learning can be told from memorising.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import numpy as np
from scipy import sparse

from cmrcnet.datasets.cohort_files import write_cohort, write_slide
from cmrcnet.datasets.synthetic_anatomy import GROUP_SHARES, Anatomy, TissuePlan, draw_counts, in_discs, synthetic_genes
from cmrcnet.datasets.synthetic_image import paint
from cmrcnet.errors import BadOption
from cmrcnet.slides.section import Cohort, CohortEntry, Section, Spots
from cmrcnet.slides.slide import ArraySlide, known_scale

__all__ = [
    "SyntheticTruth",
    "synthetic_cohort",
    "synthetic_section",
    "synthetic_slide",
    "synthetic_truth",
    "write_cohort",
    "write_slide",
]

PITCH_UM = 150.0
"""Distance between neighbouring spots."""

DIAMETER_UM = 100.0
MPP = 1.0
LEAST_TISSUE = 0.8
"""Least share of tissue in a spot."""

UNSEEN_PATIENT = 1_000
"""Patient that `synthetic_section` makes by default, which no cohort contains."""


@dataclass(frozen=True, eq=False)
class SyntheticTruth:
    """Expected expression of spots, without counting noise.

    `expected` (spots, genes) is log1p(10,000 x expected share of the spot's transcripts), float64. Of the kinds
    "morphology", "hidden" and "steady", only "morphology" genes can be predicted from the image. `traits` (spots, 6)
    are the shares of tumour, high-grade tumour, lymphocytes, stroma and fat, and the crowding of nuclei.
    """

    genes: tuple[str, ...]
    kinds: tuple[str, ...]
    expected: np.ndarray
    traits: np.ndarray

    def genes_of(self, kind: str) -> tuple[str, ...]:
        """Names of the genes of one kind."""
        return tuple(gene for gene, each in zip(self.genes, self.kinds, strict=True) if each == kind)


def synthetic_cohort(
    *,
    patients: int = 4,
    sections_per_patient: int = 1,
    spots: int = 220,
    genes: int = 320,
    seed: int = 0,
    mpp: float = MPP,
    structure: float = 1.0,
) -> Cohort:
    """Make a cohort of synthetic sections.

    A section is rendered when it is first read and then kept. Sections differ in anatomy; patients differ in stain,
    light and, by about 10 %, in every gene.

    Parameters
    ----------
    patients, sections_per_patient : int
        Size of the cohort.
    spots : int
        Spots per section; they determine the image's size: 40 spots take about 1.2 x 1.1 mm.
    genes : int
        At least 24; three quarters of them follow morphology.
    seed : int
        Another seed gives other patients with the same genes.
    mpp : float
        Micrometres a pixel.
    structure : float
        Size of the regions of tissue: 1 gives some hundred micrometres, 0.25 structures within a spot, for fine maps.

    Returns
    -------
    Cohort
        Patients ``P1``, ``P2``, ...; sections ``P1S1``, ...

    Raises
    ------
    BadOption

    Examples
    --------
    >>> cohort = synthetic_cohort(patients=2, spots=12, genes=40, seed=1)
    >>> cohort.sections
    ('P1S1', 'P2S1')
    >>> cohort.read("P1S1").counts.shape
    (12, 40)
    """
    for option, value in (("patients", patients), ("sections_per_patient", sections_per_patient), ("spots", spots)):
        if value < 1:
            raise BadOption(option, value, want="1 or more")
    if not 0.1 <= structure <= 10:
        raise BadOption("structure", structure, want="a size from 0.1 to 10")
    synthetic_genes(genes)
    entries = []
    for patient in range(patients):
        for number in range(sections_per_patient):
            make = partial(
                synthetic_section,
                seed,
                patient=patient,
                section=number,
                spots=spots,
                genes=genes,
                mpp=mpp,
                structure=structure,
            )
            entries.append(CohortEntry(f"P{patient + 1}S{number + 1}", f"P{patient + 1}", _Once(make)))
    return Cohort(f"synthetic tissue, seed {seed}", tuple(entries))


@dataclass(eq=False)
class _Once:
    """Makes a section at the first call and returns the same one later."""

    make: partial[Section]
    made: Section | None = None

    def __call__(self) -> Section:
        if self.made is None:
            self.made = self.make()
        return self.made


def synthetic_section(
    seed: int = 0,
    *,
    patient: int = UNSEEN_PATIENT,
    section: int = 0,
    spots: int = 220,
    genes: int = 320,
    mpp: float = MPP,
    structure: float = 1.0,
) -> Section:
    """Make one section, by default of a patient that is not in `synthetic_cohort` of the same seed (its first one is
    0).
    """
    anatomy, positions = _lay_out(TissuePlan(seed, patient, section, genes, 0, 0, structure), spots)
    centre_um = positions * PITCH_UM
    name = f"P{patient + 1}S{section + 1}"
    counts = draw_counts(anatomy, _truth(anatomy, centre_um, DIAMETER_UM)[1])
    return Section(
        name,
        f"P{patient + 1}",
        ArraySlide(paint(anatomy, mpp), mpp, name),
        Spots(tuple(f"{x}x{y}" for x, y in positions), centre_um / mpp, DIAMETER_UM),
        sparse.csr_matrix(counts.astype(np.float32)),
        synthetic_genes(genes).names,
        absent_genes="zero",
        metadata={"synthetic": anatomy.plan.to_text()},
    )


def synthetic_slide(seed: int = 0, *, spots: int = 220, mpp: float = MPP) -> ArraySlide:
    """Slide of `synthetic_section` for the same seed, of a patient in no cohort of that seed.

    Its expected expression is ``synthetic_truth(synthetic_section(seed))``.
    """
    section = synthetic_section(seed, spots=spots, mpp=mpp)
    slide = cast(ArraySlide, section.slide)
    slide.name = "unseen"
    return slide


def synthetic_truth(
    section: Section, centre_px: np.ndarray | None = None, *, diameter_um: float = DIAMETER_UM
) -> SyntheticTruth:
    """Expected expression of a synthetic section, also after it was written and read again.

    `centre_px` (locations, 2) are level-0 pixels, by default those of the spots; `diameter_um` is the size of the disc
    whose tissue is expressed, from 10 um, which is the anatomy's own detail. A section without a plan in
    ``metadata["synthetic"]`` is a `BadOption`.
    """
    if "synthetic" not in section.metadata:
        raise BadOption("section", section.name, want="a made-up section (its metadata hold no plan)")
    plan = TissuePlan.from_text(section.metadata["synthetic"])
    centres = section.spots.centre_px if centre_px is None else np.asarray(centre_px, np.float64)
    traits, shares = _truth(Anatomy(plan), centres * known_scale(section.slide), diameter_um)
    genes = synthetic_genes(plan.genes)
    columns = [genes.names.index(name) for name in section.genes]
    kinds = tuple(genes.kinds[column] for column in columns)
    return SyntheticTruth(section.genes, kinds, np.log1p(1e4 * shares[:, columns]), traits)


def _truth(anatomy: Anatomy, centre_um: np.ndarray, diameter_um: float) -> tuple[np.ndarray, np.ndarray]:
    """Traits (spots, 6) and expected shares of each gene (spots, genes), float64, at locations given in micrometres.

    Rows of the shares sum to 1, and each group of genes to its `GROUP_SHARES`.
    """
    traits = anatomy.at_spots(anatomy.traits, centre_um, diameter_um)
    hidden = anatomy.at_spots(anatomy.hidden, centre_um, diameter_um)
    genes = synthetic_genes(anatomy.plan.genes)
    rate = genes.base * np.exp(traits @ genes.traits.T + hidden @ genes.hidden.T)
    for kind, share in GROUP_SHARES.items():
        columns = np.array(genes.kinds) == kind
        rate[:, columns] *= share / rate[:, columns].sum(axis=1, keepdims=True)
    return traits, rate


def _lay_out(plan: TissuePlan, spots: int) -> tuple[Anatomy, np.ndarray]:
    """Enlarge the section until its tissue holds enough spots; keep exactly `spots`, row by row.

    Returns the anatomy and the array positions (spots, 2) as column, row, both counted from 1.
    """
    columns = int(np.ceil(np.sqrt(spots / 0.9)))
    while True:
        rows = int(np.ceil(0.85 * columns))
        sized = replace(plan, width_um=round((columns + 1) * PITCH_UM), height_um=round((rows + 1) * PITCH_UM))
        anatomy = Anatomy(sized)
        x, y = np.meshgrid(np.arange(1, columns + 1), np.arange(1, rows + 1))
        positions = np.column_stack([x.ravel(), y.ravel()])
        share = in_discs(anatomy.tissue, positions * PITCH_UM, DIAMETER_UM)
        if (share > LEAST_TISSUE).sum() >= spots:
            best = np.argsort(-share.round(3), kind="stable")[:spots]
            return anatomy, positions[np.sort(best)]
        columns += 1
