"""Null gene sets: genes of like mean that are in no way special, so that a set's score can be read against them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cmrcnet.errors import TooFew, UnknownName

NEAREST = 10
"""Free genes of nearest mean from which each partner is drawn."""


def matched_sets(
    sets: Mapping[str, Sequence[str]], means: Mapping[str, float], seed: int
) -> dict[str, tuple[str, ...]]:
    """For each gene of each set, a gene of similar mean from outside the set.

    Highly variable genes are also highly expressed ones, and those are measured with less noise: part of their score
    is their level. The set's score minus that of its match is the part that is not.

    Parameters
    ----------
    sets : mapping of str to sequence of str
        Sets to match: HVG, markers. A set of all genes cannot be matched.
    means : mapping of str to float
        Mean expression of every gene over the TRAINING spots; its genes are the candidates.
    seed : int
        Genes take their turn in a seeded random order; each draws from the ten free genes of nearest mean.

    Returns
    -------
    dict
        "matched NAME" for each set NAME, as long as the set and in its order, every gene once and none of the set.

    Raises
    ------
    UnknownName
        A gene of a set has no mean.
    TooFew
        Fewer genes are outside a set than inside.
    """
    genes = list(means)
    mean = np.array([means[gene] for gene in genes], np.float64)
    column = {gene: i for i, gene in enumerate(genes)}
    matched: dict[str, tuple[str, ...]] = {}
    for number, (name, members) in enumerate(sets.items()):
        missing = [gene for gene in members if gene not in column]
        if missing:
            raise UnknownName("mean of gene", missing[0], genes)
        free = np.ones(len(genes), bool)
        free[[column[gene] for gene in members]] = False
        if free.sum() < len(members):
            hint = "match a smaller set, or give the means of more genes"
            raise TooFew(f"genes outside the set {name}", int(free.sum()), len(members), hint)
        rng = np.random.default_rng([seed, number])
        partner: dict[str, str] = {}
        for place in rng.permutation(len(members)):
            gene = members[place]
            candidates = np.flatnonzero(free)
            apart = np.abs(mean[candidates] - mean[column[gene]])
            near = candidates[np.argsort(apart, kind="stable")[:NEAREST]]
            drawn = int(near[rng.integers(len(near))])
            free[drawn] = False
            partner[gene] = genes[drawn]
        matched[f"matched {name}"] = tuple(partner[gene] for gene in members)
    return matched
