"""From the genes that somebody asks for to columns of the bank."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np

from cmrcnet.errors import TooFew, UnknownName
from cmrcnet.genes.naming import explain_no_shared_genes


def columns_of(wanted: Sequence[str] | None, known: Sequence[str]) -> np.ndarray:
    """Columns of the genes `wanted`, in that order and each once; of all genes for None.

    Parameters
    ----------
    wanted : sequence of str or None
    known : sequence of str
        Genes of the bank.

    Returns
    -------
    numpy.ndarray, shape (columns,), int64

    Raises
    ------
    TooFew
        An empty list.
    UnknownName
        A gene that no section of the bank lists; with the reason, where none of the genes is known.
    """
    if wanted is None:
        return np.arange(len(known))
    genes = list(dict.fromkeys([wanted] if isinstance(wanted, str) else wanted))
    if not genes:
        raise TooFew("genes to predict", 0, 1, "name some, or leave them out for all that the bank measured")
    column = {gene: number for number, gene in enumerate(known)}
    unknown = [gene for gene in genes if gene not in column]
    if unknown:
        hint = explain_no_shared_genes(genes, known) if len(unknown) == len(genes) else ""
        raise UnknownName("gene in the bank", unknown[0], _alike(unknown[0], known), hint)
    return np.array([column[gene] for gene in genes])


def _alike(gene: str, known: Sequence[str]) -> list[str]:
    """Genes to show beside one that is not there: the same in another case, else of alike spelling, else the first."""
    folded = [other for other in known if other.upper() == gene.upper()]
    return folded or difflib.get_close_matches(gene, known, n=5) or list(known[:5])
