"""Genes and counts of made-up sections, and the right answer to each.

Names say what a gene follows, and the same names mean the same genes in every cohort:

========== ======================================================= ==============================
name       expected expression follows                             can be predicted from the picture
========== ======================================================= ==============================
TUMOUR001  share of tumour in the spot                             yes
GRADE001   tumour whose nuclei are large and irregular             yes
LYMPH001   share of lymphocytes                                    yes
STROMA001  share of stroma                                         yes
FAT001     share of fat                                            yes
CROWD001   how densely nuclei lie                                  yes, weakly
HIDDEN001  a smooth field that leaves no trace in the picture      no
STEADY001  nothing: the same everywhere                            no
========== ======================================================= ==============================

The three groups (morphology, hidden, steady) each take a fixed share of a spot's transcripts, and depth does not
depend on the tissue. Without that, library-size normalisation would carry morphology into the other genes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from cmrcnet.datasets.synthetic_anatomy import HIDDEN_FIELDS, TRAITS, Anatomy
from cmrcnet.errors import BadOption

PREFIXES = ("TUMOUR", "GRADE", "LYMPH", "STROMA", "FAT", "CROWD")
"""Name of each morphology programme, in the order of `TRAITS`."""

GROUP_SHARES = {"morphology": 0.6, "hidden": 0.15, "steady": 0.25}
"""Share of a spot's expected transcripts."""

FEWEST_GENES = 24
MEDIAN_DEPTH = 5_000.0
"""Transcripts of the middle spot."""

_GENE_SEED = 20_250_610  # of the genes themselves, which are the same in every cohort
_STRENGTH = {"TUMOUR": 2.2, "GRADE": 2.0, "LYMPH": 2.6, "STROMA": 1.8, "FAT": 2.4, "CROWD": 1.4}


@dataclass(frozen=True, eq=False)
class SyntheticGenes:
    """The genes of made-up sections.

    Parameters
    ----------
    names : tuple of str
    kinds : tuple of {"morphology", "hidden", "steady"}
    base : numpy.ndarray, shape (genes,)
        Expected expression where the gene's driver is 0, relative to its group.
    traits : numpy.ndarray, shape (genes, 6)
        Change of the log of expression a unit of each of `TRAITS`.
    hidden : numpy.ndarray, shape (genes, 4)
        The same for the hidden fields.
    dispersion : numpy.ndarray, shape (genes,)
        theta of the negative binomial: variance = mean + mean^2 / theta.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    base: np.ndarray
    traits: np.ndarray
    hidden: np.ndarray
    dispersion: np.ndarray

    def of_kind(self, kind: str) -> np.ndarray:
        """Columns of the genes of one kind."""
        return np.flatnonzero(np.array(self.kinds) == kind)


@cache
def synthetic_genes(genes: int = 320) -> SyntheticGenes:
    """The first genes of each programme: three quarters follow morphology, an eighth hidden fields, the rest nothing.

    Raises
    ------
    BadOption
    """
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


def expected_shares(genes: SyntheticGenes, traits: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """What share of a spot's transcripts each gene is expected to take.

    Parameters
    ----------
    genes : SyntheticGenes
    traits : numpy.ndarray, shape (spots, 6)
    hidden : numpy.ndarray, shape (spots, 4)

    Returns
    -------
    numpy.ndarray, shape (spots, genes), float64
        Rows sum to 1, and each group of genes to its `GROUP_SHARES`.
    """
    rate = genes.base * np.exp(traits @ genes.traits.T + hidden @ genes.hidden.T)
    for kind, share in GROUP_SHARES.items():
        columns = genes.of_kind(kind)
        rate[:, columns] *= share / rate[:, columns].sum(axis=1, keepdims=True)
    return rate


def draw_counts(anatomy: Anatomy, shares: np.ndarray) -> np.ndarray:
    """Draw negative binomial counts (a Poisson whose mean is gamma distributed), with depth a spot.

    The patient moves each gene a little (a batch effect of about 10 %), which no picture tells.

    Returns
    -------
    numpy.ndarray, shape (spots, genes), int64
    """
    genes = synthetic_genes(anatomy.plan.genes)
    batch = anatomy.plan.patient_random("batch").lognormal(0, 0.1, shares.shape[1])
    random = anatomy.plan.random("counts")
    depth = MEDIAN_DEPTH * random.lognormal(0, 0.35, (len(shares), 1))
    mean = depth * shares * batch
    return random.poisson(random.gamma(genes.dispersion, mean / genes.dispersion))
