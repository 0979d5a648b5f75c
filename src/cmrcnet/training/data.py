"""The pairs that a network learns from: mapped inputs beside sparse expression. No table is sliced by name here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import sparse

from cmrcnet.errors import BadOption, ShapeMismatch
from cmrcnet.genes.components import ExpressionComponents
from cmrcnet.genes.gene_sets import GenePanel
from cmrcnet.genes.normalise import spot_weights
from cmrcnet.slides.section import Cohort, Section
from cmrcnet.storage.hashing import fingerprint

SPOTS_AT_A_TIME = 64


@dataclass(frozen=True, eq=False)
class Pairs:
    """Every training spot's input and expression, section after section.

    A pair's id is its row in that order. Inputs stay on disk (memory-mapped); expression is sparse.

    Parameters
    ----------
    sections, patients : tuple of str
        One entry a section.
    inputs : tuple of arrays
        One array a section: tokens (spots, tokens, dim) float16, or patches (spots, px, px, 3) uint8.
    expression : scipy.sparse.csr_matrix, shape (pairs, genes), float32
        Log-normalised, in the panel's order.
    scored : scipy.sparse.csr_matrix or None, shape (pairs, scored genes), float32
        Log-normalised expression of the genes whose prediction chooses the epoch.
    contents : tuple of str
        Fingerprint of each section's picture and locations.
    scores : numpy.ndarray or None, shape (pairs, rank), float32
        Expression scores, when the config works on components; `expression` is then their first columns.
    weights : numpy.ndarray, shape (pairs,), float32
        How much each spot counts where heads are fitted; all alike when left out.
    """

    sections: tuple[str, ...]
    patients: tuple[str, ...]
    inputs: tuple[np.ndarray, ...]
    expression: sparse.csr_matrix
    scored: sparse.csr_matrix | None = None
    contents: tuple[str, ...] = ()
    scores: np.ndarray | None = None
    weights: np.ndarray | None = None
    section_of: np.ndarray = field(init=False)
    """(pairs,) int64: index of each pair's section."""
    first: np.ndarray = field(init=False)
    """(sections,) int64: id of each section's first pair."""

    def __post_init__(self) -> None:
        lengths = np.array([len(array) for array in self.inputs], np.int64)
        if self.expression.shape[0] != lengths.sum():
            raise ShapeMismatch("expression", want=(int(lengths.sum()), "genes"), got=self.expression.shape)
        different = {(array.shape[1:], array.dtype.str) for array in self.inputs}
        if len(different) != 1:
            raise ShapeMismatch("inputs of the sections", want="one shape and type", got=sorted(map(str, different)))
        # Plain views: indexing a numpy.memmap makes a new memmap object each time, which is slow.
        object.__setattr__(self, "inputs", tuple(np.asarray(array) for array in self.inputs))
        if self.weights is None:
            object.__setattr__(self, "weights", np.ones(len(self), np.float32))
        object.__setattr__(self, "section_of", np.repeat(np.arange(len(lengths)), lengths))
        object.__setattr__(self, "first", np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64))

    def __len__(self) -> int:
        return self.expression.shape[0]

    def batch(self, ids: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Gather pairs as tensors.

        Parameters
        ----------
        ids : array of int, shape (batch,)
            Any order, repeats allowed. The disk is read in ascending order; the result is in the order given.

        Returns
        -------
        inputs : torch.Tensor
            (batch, tokens, dim) float32 tokens, or (batch, px, px, 3) uint8 patches, which an encoder's `prepare`
            takes and which are a quarter of the size.
        expression : torch.Tensor, shape (batch, genes), float32
        """
        return as_tensors(*self.gather(ids))

    def gather(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `batch`, in arrays and as stored: tokens float16, patches uint8.

        For a thread that prepares batches: it computes with NumPy alone, because torch's own threads, woken from two
        sides at once, wait for each other.
        """
        ids = np.asarray(ids, np.int64)
        if ids.ndim != 1 or (ids.size and not (ids.min() >= 0 and ids.max() < len(self))):
            raise BadOption("ids", ids, want=f"a list of pairs, 0 to {len(self) - 1}")
        model = self.inputs[0]
        gathered = np.empty((len(ids), *model.shape[1:]), model.dtype)
        sections, rows = self.section_of[ids], ids - self.first[self.section_of[ids]]
        for place in np.argsort(ids, kind="stable").tolist():
            gathered[place] = self.inputs[sections[place]][rows[place]]
        return gathered, _dense_rows(self.expression, ids)

    def blocks(self, ids: np.ndarray, size: int = SPOTS_AT_A_TIME) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The pairs `ids` in order, at most `size` at a time: memory stays bounded."""
        for start in range(0, len(ids), size):
            yield self.batch(ids[start : start + size])

    def inputs_of(self, ids: np.ndarray) -> np.ndarray:
        """The inputs of these pairs, in order, as stored. All at once: for pooled views, which are small."""
        return np.stack([self.inputs[self.section_of[i]][i - self.first[self.section_of[i]]] for i in ids.tolist()])

    def units(self, unit: str) -> np.ndarray:
        """(pairs,) str: what a split must keep together: "patient", or "section" (also with a single patient)."""
        by_section = unit == "section" or len(set(self.patients)) < 2
        return np.array(self.sections if by_section else self.patients)[self.section_of]

    def token_statistics(self, ids: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of each token feature over all tokens of these pairs.

        One pass in float64, block by block, merged by Chan, Golub and LeVeque (1983). A feature that never varies
        gets the deviation 1.

        Returns
        -------
        mean, deviation : torch.Tensor, shape (dim,), float32
        """
        dim = self.inputs[0].shape[-1]
        count, mean, scatter = 0, torch.zeros(dim, dtype=torch.float64), torch.zeros(dim, dtype=torch.float64)
        for tokens, _ in self.blocks(np.sort(ids)):
            values = tokens.reshape(-1, dim).double()
            here, middle = len(values), values.mean(dim=0)
            step = middle - mean
            scatter += (values - middle).square().sum(dim=0) + step.square() * (count * here / (count + here))
            mean += step * (here / (count + here))
            count += here
        deviation = (scatter / max(count, 1)).sqrt()
        constant = deviation <= 1e-6 * mean.abs().clamp(min=1e-3)
        return mean.float(), torch.where(constant, torch.ones_like(deviation), deviation).float()

    def fingerprint(self) -> str:
        """Name of all that is learnt from: sections, pictures, locations, expression."""
        matrix = self.expression
        return fingerprint(
            list(self.sections), list(self.patients), list(self.contents), matrix.indptr, matrix.indices, matrix.data
        )


def read_pairs(
    cohort: Cohort,
    panel: GenePanel,
    inputs_of: Callable[[Section], np.ndarray],
    *,
    scored: GenePanel | None = None,
    components: ExpressionComponents | None = None,
    gene_rank: int = 0,
    depth_weights: bool = False,
) -> Pairs:
    """Read a cohort's sections one after the other and keep what training needs of each.

    Parameters
    ----------
    cohort : Cohort
    panel : GenePanel
    inputs_of : callable
        Tokens or patches of a section, mapped from disk.
    scored : GenePanel, optional
        Genes whose prediction chooses the epoch.
    components : ExpressionComponents, optional
        Turn the panel's expression into scores; the first `gene_rank` are what the gene encoder sees.
    gene_rank : int
    depth_weights : bool
        Weigh each spot by its depth.
    """
    weights: list[np.ndarray] = []
    components_of: list[np.ndarray] = []
    inputs, expression, scores, contents, patients = [], [], [], [], []
    for section in cohort:
        selected = panel.select(section)
        if components is not None:
            components_of.append(components.scores(selected))
            selected = sparse.csr_matrix(components_of[-1][:, :gene_rank])
        expression.append(selected)
        if scored is not None:
            scores.append(scored.select(section))
        if depth_weights:
            weights.append(spot_weights(section.counts))
        inputs.append(inputs_of(section))
        contents.append(fingerprint(section.slide.fingerprint(), section.slide.mpp, section.spots.centre_px))
        patients.append(section.patient)
        close = getattr(section.slide, "close", None)  # a slide in memory has nothing to close
        if close is not None:
            close()
    return Pairs(
        cohort.sections,
        tuple(patients),
        tuple(inputs),
        sparse.csr_matrix(sparse.vstack(expression, format="csr"), dtype=np.float32),
        sparse.csr_matrix(sparse.vstack(scores, format="csr"), dtype=np.float32) if scores else None,
        tuple(contents),
        np.concatenate(components_of) if components_of else None,
        np.concatenate(weights) if weights else None,
    )


def as_tensors(inputs: np.ndarray, expression: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """What `gather` gave, as `batch` gives it; nothing is copied but for half precision becoming float32."""
    tensor = torch.from_numpy(inputs)
    return tensor.float() if tensor.is_floating_point() else tensor, torch.from_numpy(expression)


def _dense_rows(matrix: sparse.csr_matrix, rows: np.ndarray) -> np.ndarray:
    """Rows of a sparse matrix as (rows, columns) float32."""
    dense = np.zeros((len(rows), matrix.shape[1]), np.float32)
    for place, row in enumerate(rows.tolist()):
        entries = slice(matrix.indptr[row], matrix.indptr[row + 1])
        dense[place, matrix.indices[entries]] = matrix.data[entries]
    return dense
