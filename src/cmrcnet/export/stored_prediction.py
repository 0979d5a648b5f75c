"""A prediction table on disk, read a gene or a chunk of locations at a time."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cmrcnet.errors import BadInput, Damaged, Incompatible, MissingInput, TooFew, UnknownName
from cmrcnet.export.table_file import TableSeal
from cmrcnet.genes.table import FORMAT, decode
from cmrcnet.storage.refusals import raise_refusal

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


class StoredPrediction(AbstractContextManager["StoredPrediction"]):
    """An .h5ad that `cmrcnet predict` wrote. Use it in a ``with`` block, or call `close`.

    Raises
    ------
    MissingInput, BadInput, Incompatible, Damaged
    """

    def __init__(self, path: Path) -> None:
        import h5py
        from anndata.io import read_elem

        self.path = Path(path)
        if not self.path.is_file():
            raise MissingInput(
                path, "The prediction table", "write one: cmrcnet predict MODEL SLIDE --bank BANK --out OUT"
            )
        self._seal = TableSeal(self.path)
        try:
            self._file: Any = h5py.File(self.path, "r", locking=False)
        except OSError as error:
            raise_refusal(error, path)
            raise BadInput(path, "a prediction table", "it is not an .h5ad file, or is truncated") from error
        try:
            self._seal.check_rest(self._file)
            read: Any = read_elem
            self.obs: pd.DataFrame = read(self._file["obs"])
            self.var: pd.DataFrame = read(self._file["var"])
            self.facts: dict[str, Any] = read(self._file["uns/cmrcnet"])
            self.centre_px: np.ndarray = self._file["obsm/spatial"][:]
            number = int(self.facts["format"])
        except (KeyError, OSError, ValueError, RuntimeError, TypeError) as error:
            self.close()
            raise_refusal(error, path)
            if isinstance(error, Damaged):
                raise
            raise BadInput(path, "a prediction table", "cmrcnet did not write it") from error
        if number != FORMAT:
            self.close()
            raise Incompatible.format(path, number, FORMAT, "predict again")

    def __len__(self) -> int:
        return len(self.obs)

    @property
    def genes(self) -> list[str]:
        """Names of the genes, in the order of the table."""
        return list(self.var.index)

    @property
    def side_px(self) -> float:
        """Side (or diameter) of a location in level-0 pixels."""
        return float(self.facts["spot_diameter_um"]) / float(self.facts["mpp"])

    @property
    def slide_px(self) -> tuple[int, int]:
        """Width and height of the slide at level 0."""
        reach = np.ceil(self.centre_px.max(axis=0) + self.side_px / 2)
        return int(self.facts.get("slide_width_px", reach[0])), int(self.facts.get("slide_height_px", reach[1]))

    @cached_property
    def picture(self) -> tuple[np.ndarray, float]:
        """Thumbnail of the slide, (height, width, 3) uint8, and the level-0 pixels per pixel of it."""
        from anndata.io import read_elem

        stored: Any = read_elem(self._file["uns/spatial"])
        (found,) = stored.values()
        return found["images"]["hires"], 1 / float(found["scalefactors"]["tissue_hires_scalef"])

    @property
    def layers(self) -> list[str]:
        """Names of the layers besides X."""
        return list(self._file["layers"])

    def column(self, gene: str, layer: str | None = None) -> np.ndarray:
        """Values of one gene, of X (predicted expression) or of a layer: (locations,) float32."""
        key = "X" if layer is None else f"layers/{layer}"
        try:
            number: Any = self.var.index.get_loc(gene)
        except KeyError:
            raise UnknownName("gene in the prediction", gene, self.genes) from None
        if layer is None and "X" not in self._file:
            return self._decode(slice(None), [int(number)])[:, 0]
        self._seal.check(self._file, key, column=int(number))
        return self._file[key][:, number].astype(np.float32, copy=False)

    def rows(self, rows: slice, layer: str | None = None) -> np.ndarray:
        """All genes of some locations, of X or of a layer: (locations, genes) float32."""
        if layer is None and "X" not in self._file:
            return self._decode(rows)
        key = "X" if layer is None else f"layers/{layer}"
        self._seal.check(self._file, key, rows)
        return self._file[key][rows].astype(np.float32, copy=False)

    def _decode(self, rows: slice, columns: list[int] | slice = slice(None)) -> np.ndarray:
        """Expression of some locations and genes of a table of components."""
        self._seal.check(self._file, "obsm/components", rows)
        level = self.var["level"].to_numpy()[columns]
        loadings = self._file["varm/loadings"][:][columns]
        return decode(self._file["obsm/components"][rows], loadings, level, self.facts)

    def location(self, row: int) -> AnnData:
        """One location as a table of one row: X, obs, var, the arrays of ``obsm`` and ``uns["cmrcnet"]``."""
        import anndata

        only = slice(row, row + 1)
        near: Any = {}
        for name, values in self._file["obsm"].items():
            self._seal.check(self._file, f"obsm/{name}", only)
            near[name] = values[only]
        return anndata.AnnData(
            X=self.rows(only), obs=self.obs.iloc[only], var=self.var, obsm=near, uns={"cmrcnet": self.facts}
        )

    def to_ann_data(self) -> AnnData:
        """The table in memory, compared with its seal: X, obs, var, the centres and ``uns["cmrcnet"]``."""
        import anndata

        self.require_unchanged()
        centres: Any = {"spatial": self.centre_px}
        facts = {"cmrcnet": self.facts}
        return anndata.AnnData(X=self.rows(slice(None)), obs=self.obs, var=self.var, obsm=centres, uns=facts)

    def require_unchanged(self) -> None:
        """Compare all of the table with its seal: `Damaged`."""
        self._seal.check_all(self._file)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __exit__(self, *_: object) -> None:
        self.close()


def write_expression(prediction: StoredPrediction, path: Path, genes: Sequence[str] | None = None) -> None:
    """Write a prediction table of some genes: expression as float32, without spread and neighbours."""
    import anndata
    from anndata.io import read_elem

    shown = genes_to_show(prediction, genes)
    centres: Any = {"spatial": prediction.centre_px}
    facts = prediction.facts | {"content": "expression", "values": "float32"}
    anndata.AnnData(
        X=np.column_stack([prediction.column(gene) for gene in shown]),
        obs=prediction.obs,
        var=prediction.var.loc[shown].drop(columns="level", errors="ignore"),
        obsm=centres,
        uns={"cmrcnet": facts, "spatial": read_elem(prediction._file["uns/spatial"])},
    ).write_h5ad(path)


FEW = 12
"""Up to this number, all genes are shown."""
SHOWN = 6
"""Number of genes shown otherwise: those that vary most."""
_LOOKED_AT = 16
"""Chunks of 256 locations sampled to find them."""


def genes_to_show(prediction: StoredPrediction, wanted: Sequence[str] | None) -> list[str]:
    """Genes to show: those wanted, else those whose predictions vary most over the slide."""
    known = prediction.genes
    if wanted is not None:
        genes = list(dict.fromkeys(wanted))
        if not genes:
            raise TooFew("genes to show", 0, 1, "name some, or leave them out for those that vary most")
        for gene in genes:
            if gene not in prediction.var.index:
                raise UnknownName("gene in the prediction", gene, known)
        return genes
    if len(known) <= FEW:
        return known
    starts = np.unique(np.linspace(0, max(0, len(prediction) - 256), _LOOKED_AT).astype(int) // 256 * 256)
    sample = np.concatenate([prediction.rows(slice(start, start + 256)) for start in starts])
    deviation = np.nan_to_num(np.where(np.isnan(sample).any(axis=0), np.nan, sample.std(axis=0)), nan=-1.0)
    return [known[column] for column in np.argsort(-deviation, kind="stable")[:SHOWN]]
