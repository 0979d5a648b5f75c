"""Hidden anatomy of synthetic sections, and genes whose counts follow it.

The anatomy consists of smooth random fields in micrometres on a coarse grid (`CELL_UM`), so that regions grade into
each other; image and counts both read it. The file is one thing: all that is drawn at random about a section except
its pixels. Gene names tell what a gene follows, and mean the same genes in every cohort:

========== ======================================================= ==============================
name       expected expression follows                             predictable from the image
========== ======================================================= ==============================
TUMOUR001  share of tumour in the spot                             yes
GRADE001   tumour whose nuclei are large and irregular             yes
LYMPH001   share of lymphocytes                                    yes
STROMA001  share of stroma                                         yes
FAT001     share of fat                                            yes
CROWD001   density of nuclei                                       yes, weakly
HIDDEN001  a smooth field that leaves no trace in the image        no
STEADY001  nothing: the same everywhere                            no
========== ======================================================= ==============================

The three groups (morphology, hidden, steady) each have a fixed share of a spot's transcripts, and depth does not depend
on the tissue: otherwise library-size normalisation would carry morphology into the other genes.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from cmrcnet.errors import BadOption

REGIONS = ("tumour", "lymphocyte", "stroma", "fat")
"""Kinds of tissue."""

CELL_UM = 10.0
"""Side of one cell of the coarse grid."""

HIDDEN_FIELDS = 4
"""Number of smooth fields that the image does not show."""

_SOFTNESS = 3.5  # how sharply regions meet: larger is sharper
_SIGMA_UM = {"tumour": 95.0, "lymphocyte": 65.0, "stroma": 110.0, "fat": 130.0}
_OFFSET = {"tumour": 0.35, "lymphocyte": -0.55, "stroma": 0.35, "fat": -0.6}


@dataclass(frozen=True)
class TissuePlan:
    """Definition of one synthetic section; equal plans make equal sections.

    `seed` is that of the cohort, `patient` and `section` count from 0, `genes` is their number; the image's size is in
    um. `structure` multiplies the size of the regions of tissue: with 0.25 they are finer than a spot.
    """

    seed: int
    patient: int
    section: int
    genes: int
    width_um: int
    height_um: int
    structure: float = 1.0

    def random(self, what: str) -> np.random.Generator:
        """Independent random stream for a purpose."""
        return np.random.default_rng([self.seed, self.patient, self.section, zlib.crc32(what.encode())])

    def patient_random(self, what: str) -> np.random.Generator:
        """Random stream shared by the patient's sections."""
        return np.random.default_rng([self.seed, self.patient, zlib.crc32(what.encode())])

    def to_text(self) -> str:
        """One line of text, stored in the section's facts and the cohort file."""
        who = f"seed {self.seed} patient {self.patient} section {self.section}"
        return f"{who} genes {self.genes} um {self.width_um}x{self.height_um} structure {self.structure!r}"

    @classmethod
    def from_text(cls, text: str) -> TissuePlan:
        """Inverse of `to_text`."""
        words = text.split()
        return cls(*(int(word) for word in [*words[1:8:2], *words[9].split("x")]), structure=float(words[11]))


class Anatomy:
    """The coarse maps (rows, columns) of one section, float32.

    `tissue` is the share of each cell that is tissue; `composition` (4, rows, columns) the share of each of `REGIONS`,
    with sum 1 in every cell; `grade`, from 0 to 1, how large and irregular the tumour's nuclei are; `crowding`, from 0
    to 1, how densely nuclei lie.
    """

    def __init__(self, plan: TissuePlan) -> None:
        self.plan = plan
        self.shape = (int(np.ceil(plan.height_um / CELL_UM)), int(np.ceil(plan.width_um / CELL_UM)))
        y, x = (np.linspace(-1, 1, n) for n in self.shape)  # the tissue's outline is rounded and wavy, on white
        radius = (np.abs(x[None, :]) ** 4 + np.abs(y[:, None]) ** 4) ** 0.25
        self.tissue = _sigmoid((0.93 - radius + 0.035 * self._field("outline", 120.0)) / 0.006)
        sizes = {name: sigma_um * plan.structure for name, sigma_um in _SIGMA_UM.items()}
        logits = np.stack([_SOFTNESS * (self._field(name, sizes[name]) + _OFFSET[name]) for name in REGIONS])
        shares = np.exp(logits - logits.max(axis=0))
        self.composition = (shares / shares.sum(axis=0)).astype(np.float32)
        self.grade = _sigmoid(1.8 * self._field("grade", 170.0 * plan.structure))
        self.crowding = _sigmoid(1.8 * self._field("crowding", 120.0 * plan.structure))

    def _field(self, what: str, sigma_um: float) -> np.ndarray:
        return smooth_noise(self.plan.random(what), self.shape, sigma_um / CELL_UM)

    @cached_property
    def traits(self) -> np.ndarray:
        """What morphology shows: shape (6, rows, columns), each about 0 to 1, in the order of `TRAITS`."""
        tumour, lymphocyte, stroma, fat = self.composition
        return np.stack([tumour, tumour * self.grade, lymphocyte, stroma, fat, self.crowding * (1 - fat)])

    @cached_property
    def hidden(self) -> np.ndarray:
        """Smooth fields that the image does not show: shape (4, rows, columns), mean 0 and deviation 1 on tissue.

        Chance correlation with the traits is removed by least squares over the tissue, so that no linear function of
        morphology predicts them within a section.
        """
        inside = (self.tissue > 0.5).ravel()
        shown = np.column_stack([np.ones(inside.sum()), *(t.ravel()[inside] for t in self.traits)])
        fields = []
        for number in range(HIDDEN_FIELDS):
            field = self._field(f"hidden {number}", 110.0).ravel().astype(np.float64)
            guess = np.linalg.lstsq(shown, field[inside], rcond=None)[0]
            whole = np.column_stack([np.ones(field.size), *(t.ravel() for t in self.traits)])
            field -= whole @ guess
            fields.append((field / field[inside].std()).reshape(self.shape))
        return np.stack(fields).astype(np.float32)

    def at_spots(self, maps: np.ndarray, centre_um: np.ndarray, diameter_um: float) -> np.ndarray:
        """Mean of maps within spots, only tissue: maps (n, rows, columns), centres (spots, 2) as x, y -> (spots, n)."""
        share = np.maximum(in_discs(self.tissue, centre_um, diameter_um), 1e-6)
        return np.column_stack([in_discs(values * self.tissue, centre_um, diameter_um) / share for values in maps])


TRAITS = ("tumour", "grade", "lymphocyte", "stroma", "fat", "crowding")
"""What morphology shows and genes follow, in the order of `Anatomy.traits`."""


def smooth_noise(random: np.random.Generator, shape: tuple[int, int], sigma: float) -> np.ndarray:
    """White noise after a Gaussian filter of `sigma` cells, with mean 0 and deviation 1, float32.

    It is drawn with a margin, so that the picture's edge looks like its middle.
    """
    from scipy.ndimage import gaussian_filter

    margin = int(np.ceil(2 * sigma))
    noise = random.standard_normal((shape[0] + 2 * margin, shape[1] + 2 * margin), dtype=np.float32)
    smooth = gaussian_filter(noise, sigma, truncate=3.0)[margin : margin + shape[0], margin : margin + shape[1]]
    return (smooth - smooth.mean()) / max(float(smooth.std()), 1e-9)


def in_discs(values: np.ndarray, centre_um: np.ndarray, diameter_um: float) -> np.ndarray:
    """Mean of a map over discs, each approximated by a Gaussian of the same variance (sigma = diameter / 4)."""
    from scipy.ndimage import gaussian_filter, map_coordinates

    smooth = gaussian_filter(values.astype(np.float64), diameter_um / 4 / CELL_UM)
    return map_coordinates(smooth, (centre_um[:, ::-1].T / CELL_UM) - 0.5, order=1, mode="nearest")


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return (1 / (1 + np.exp(-np.clip(values, -30, 30)))).astype(np.float32)


PREFIXES = ("TUMOUR", "GRADE", "LYMPH", "STROMA", "FAT", "CROWD")
"""Name of each morphology programme, in the order of `TRAITS`."""

GROUP_SHARES = {"morphology": 0.6, "hidden": 0.15, "steady": 0.25}
"""Share of a spot's expected transcripts."""

FEWEST_GENES = 24
MEDIAN_DEPTH = 5_000.0
"""Median transcripts of a spot."""

_GENE_SEED = 20_250_610  # of the genes themselves, which are the same in every cohort
_STRENGTH = {"TUMOUR": 2.2, "GRADE": 2.0, "LYMPH": 2.6, "STROMA": 1.8, "FAT": 2.4, "CROWD": 1.4}


@dataclass(frozen=True, eq=False)
class SyntheticGenes:
    """Genes of synthetic sections, of the kinds "morphology", "hidden" and "steady".

    `base` (genes,) is the expected expression where the gene's driver is 0, relative to its group. `traits` (genes, 6)
    and `hidden` (genes, 4) are the change of its log a unit of each of `TRAITS` and of each hidden field. `dispersion`
    (genes,) is theta of the negative binomial: variance = mean + mean^2 / theta.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    base: np.ndarray
    traits: np.ndarray
    hidden: np.ndarray
    dispersion: np.ndarray


@cache
def synthetic_genes(genes: int = 320) -> SyntheticGenes:
    """The first genes of each programme: 3/4 follow morphology, an eighth hidden fields, the rest nothing."""
    if genes < FEWEST_GENES:
        raise BadOption("genes", genes, want=f"{FEWEST_GENES} or more")
    each = genes * 3 // 4 // len(PREFIXES)
    hidden = genes // 8
    counts = [(prefix, each) for prefix in PREFIXES] + [("HIDDEN", hidden)]
    counts.append(("STEADY", genes - each * len(PREFIXES) - hidden))
    parts = [_gene(prefix, number) for prefix, many in counts for number in range(many)]
    names, kinds, base, traits, fields, dispersion = zip(*parts, strict=True)
    return SyntheticGenes(names, kinds, np.array(base), np.stack(traits), np.stack(fields), np.array(dispersion))


def _gene(prefix: str, number: int) -> tuple[str, str, float, np.ndarray, np.ndarray, float]:
    """One gene; its numbers come from a stream of its own, so that asking for more genes changes none."""
    order = [*PREFIXES, "HIDDEN", "STEADY"].index(prefix)
    random = np.random.default_rng([_GENE_SEED, order, number])
    base = float(random.lognormal(0, 0.8))
    dispersion = float(random.uniform(4, 15))
    traits, fields = np.zeros(len(TRAITS)), np.zeros(HIDDEN_FIELDS)
    strength = float(random.uniform(0.5, 1.3))  # programmes hold strong and weak genes
    sign = -1.0 if number % 6 == 5 else 1.0  # one gene in six falls where the others rise
    kind = "morphology"
    if prefix == "HIDDEN":
        kind = "hidden"
        fields[number % HIDDEN_FIELDS] = 0.7 * strength * (-1.0) ** (number // HIDDEN_FIELDS)
    elif prefix == "STEADY":
        kind = "steady"
    else:
        traits[order] = sign * strength * _STRENGTH[prefix]
    return f"{prefix}{number + 1:03d}", kind, base, traits, fields, dispersion


def draw_counts(anatomy: Anatomy, shares: np.ndarray) -> np.ndarray:
    """Draw negative binomial counts (spots, genes) int64: Poisson of a gamma distributed mean, with a depth of each
    spot.

    The patient moves each gene a little (a batch effect of about 10 %), which no picture tells.
    """
    genes = synthetic_genes(anatomy.plan.genes)
    batch = anatomy.plan.patient_random("batch").lognormal(0, 0.1, shares.shape[1])
    random = anatomy.plan.random("counts")
    depth = MEDIAN_DEPTH * random.lognormal(0, 0.35, (len(shares), 1))
    mean = depth * shares * batch
    return random.poisson(random.gamma(genes.dispersion, mean / genes.dispersion))
