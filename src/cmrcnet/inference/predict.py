"""Predict expression on a slide that has none, into a table in memory or a file on disk.

Both are filled by the same code, chunk by chunk, which is why the file is one thing. A file needs bounded memory, and a
killed run continues: its state lies in ``OUT.partial``, the features of the locations (`features.resumable`) and the
unfinished table (`export.table_file`). Both carry the fingerprint of what they are made from, so that the state of
another model, slide, grid or bank is never continued.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from cmrcnet.errors import BadOption, CmrcnetError, InUse, NoSpace
from cmrcnet.export.formats import STORE, export
from cmrcnet.export.spatial_store import require_spatialdata
from cmrcnet.export.stored_prediction import StoredPrediction
from cmrcnet.export.table_file import TableFile
from cmrcnet.genes.table import prediction_table
from cmrcnet.inference.confidence import flag_out_of_distribution
from cmrcnet.inference.location_features import LocationFeatures
from cmrcnet.inference.predictor import PredictOptions, Predictor, make_predictor
from cmrcnet.progress import metered
from cmrcnet.slides.slide import given_features
from cmrcnet.slides.tissue import make_query_grid
from cmrcnet.storage.atomic import (
    file_lock,
    make_partial,
    partial_folder,
    refuse_existing,
    remove_partial,
    translate_os_errors,
)
from cmrcnet.storage.hashing import fingerprint

if TYPE_CHECKING:
    from anndata import AnnData

    from cmrcnet.models.student import Student
    from cmrcnet.models.trained_model import TrainedModel
    from cmrcnet.retrieval.bank import ReferenceBank
    from cmrcnet.slides.section import Spots
    from cmrcnet.slides.slide import Slide
    from cmrcnet.slides.tissue import QueryGrid, TissueMask
    from cmrcnet.storage.cache import TokenCache

LOCK = "lock"
CHUNK_BYTES = 1 << 27
"""Approximate size of the predicted expression of one chunk; a handful of such arrays are in memory at once."""


def predict(
    model: TrainedModel | Student,
    slide: Slide,
    *,
    bank: ReferenceBank | None = None,
    spots: Spots | None = None,
    mask: TissueMask | None = None,
    genes: Sequence[str] | None = None,
    k: int | None = None,
    weighting: Literal["mean", "similarity"] | None = None,
    head: Literal["retrieval", "ridge", "kernel", "ensemble"] | None = None,
    grid_um: float = 100.0,
    window_um: float | None = None,
    intervals: bool = False,
    abstain: float | None = None,
    content: Literal["all", "expression", "components"] = "all",
    half: bool = False,
    cache: TokenCache | None = None,
) -> AnnData:
    """Predict expression at locations of a slide.

    With a trained model, each location's patch is embedded, the `k` bank spots whose gene embedding has the largest
    cosine to it are found, and their measured expression is averaged. A student predicts without a bank. A slide holds
    no counts, so no truth can enter. The table is held in memory; `inference.predict.predict_to_file` writes the same
    table to disk chunk by chunk.

    Parameters
    ----------
    model : TrainedModel or Student
    slide : Slide
        Its mpp must be known.
    bank : ReferenceBank, optional
        Made with this model. Required by a trained model; must be left out with a student.
    spots : Spots, optional
        Locations to predict; when left out a grid over the tissue, or the patches of a `FeatureSlide` whose features
        the model reads.
    mask : TissueMask, optional
        Where the tissue is; found on the slide when left out.
    genes : sequence of str, optional
        Genes to predict, in this order; every gene that the bank measured when left out.
    k : int, optional
        Measured spots averaged for one location; when left out the config's choice, or all of a smaller bank.
    weighting : {"mean", "similarity"}, optional
        How they are averaged; the config's choice when left out.
    head : {"retrieval", "ridge", "kernel", "ensemble"}, optional
        What predicts; the config's choice when left out. All but retrieval need a model that works on expression
        components. The neighbours are named with every head.
    grid_um : float
        Distance between the locations of the grid.
    window_um : float, optional
        Side of the window that a location's values are for, smaller than a spot, by a model that was trained with
        ``features.window_um``; the ridge head predicts unless `head` says otherwise. The whole window when left out.
    intervals : bool
        Add ``layers["lower"]`` and ``layers["upper"]``: each value's calibrated interval.
    abstain : float, optional
        Mark the locations that are less certain than this share of validation spots.
    content : {"all", "expression", "components"}
        What the table holds: expression, its spread among the neighbours and the neighbours; expression alone; or
        expression components, of which a gene is decoded when it is asked for (`genes.table.decode`).
    half : bool
        Keep expression as float16: half the size, three significant digits. Not with components.
    cache : TokenCache, optional
        Keeps the features of the frozen encoder from one call to the next.

    Returns
    -------
    anndata.AnnData
        The prediction table (`genes.table`). Besides, ``uns["cmrcnet"]["neighbour_spots"]`` has section, patient,
        barcode, x and y of every bank row in ``obsm["neighbour_ids"]``: the measured tissue behind each prediction,
        without the bank at hand. A value is NaN where no neighbour's section measured the gene. A student's table has
        neither neighbours nor intervals.

    Raises
    ------
    BadOption
        A model without a bank; a student with a bank or an option of a bank; k above the number of spots in the bank.
    Incompatible
        Another model made the bank, or intervals or abstention are requested of a model that has nothing to calibrate
        them on.
    UnknownName, TooFew
        A gene that the bank does not have; no genes or no locations at all.
    SectionError
        A location whose centre lies outside the slide.
    ScaleError, TooFew

    Warns
    -----
    CmrcnetWarning
        The slide is out of distribution for the sections of training (``uns["cmrcnet"]["ood"]``).

    Examples
    --------
    >>> import cmrcnet
    >>> from cmrcnet.testing import quick_config
    >>> cohort = cmrcnet.synthetic_cohort(patients=2, spots=16, genes=24, seed=0)
    >>> model = cmrcnet.fit(cohort, quick_config())
    >>> bank = cmrcnet.build_bank(model, cohort)
    >>> section = cohort.read(cohort.sections[0])
    >>> cmrcnet.predict(model, section.slide, bank=bank, spots=section.spots).shape
    (16, 24)
    """
    options = PredictOptions(
        spots=spots,
        mask=mask,
        genes=genes,
        k=k,
        weighting=weighting,
        head=head,
        grid_um=grid_um,
        window_um=window_um,
        intervals=intervals,
        abstain=abstain,
        content=content,
        half=half,
    )
    predictor = make_predictor(model, bank, options)
    grid = make_query_grid(slide, predictor.locations(slide), mask, grid_um, windows=window_um is not None)
    features = _features(predictor, slide, grid)
    features.encode(cache)
    table = _TableInMemory(len(grid.locations))
    return _fill(table, predictor, slide, grid, features)


def predict_to_file(
    predictor: Predictor,
    slide: Slide,
    out: Path,
    *,
    cache: TokenCache | None = None,
    batch: int | Literal["auto"] = "auto",
) -> tuple[int, int]:
    """Predict and write the table that `predict` returns.

    Parameters
    ----------
    predictor : Predictor
        From `make_predictor`.
    out : Path
        The .h5ad, or .zarr, to write. It appears when it is complete, and replaces what is there.
    cache : TokenCache, optional
        Keeps the features of the frozen encoder from one call to the next.
    batch : int or "auto"
        Patches a forward pass.

    Returns
    -------
    tuple of int
        Number of locations and of genes.

    Raises
    ------
    InUse
        Another process is writing it.
    NoSpace
        The disk is too small, before anything is encoded. Or it is full: nothing of `out` is left, what was encoded is
        kept, and the same call continues from there.
    Unwritable, BadInput
    MissingExtra
        .zarr without spatialdata, before anything is encoded.
    ScaleError, TooFew, SectionError
        As `predict`.
    """
    if out.suffix == STORE:
        require_spatialdata()
        if predictor.decoder is not None:
            raise BadOption("content", "components", f"all or expression with {STORE}, which holds every gene")
    options = predictor.options
    windows = options.window_um is not None
    grid = make_query_grid(slide, predictor.locations(slide), options.mask, options.grid_um, windows=windows)
    count = len(grid.locations)
    refuse_existing(out, overwrite=True, folder=out.suffix == STORE)
    work = out.with_name(f"{out.name}.partial")
    with translate_os_errors(out):
        free = shutil.disk_usage(out.parent).free
        kept = sum(file.stat().st_size for file in work.rglob("*") if file.is_file())
    copies = 2 if out.suffix == STORE else 1
    each = 4 * int(np.prod(predictor.encoder.kept_shape)) + predictor.bytes_per_location * copies
    needed = each * count - kept
    if needed > free:
        raise NoSpace.from_sentence(
            f"{out} takes about {needed / 1e9:.1f} GB while it is made, and {free / 1e9:.1f} GB are free there; free "
            "space, choose another folder, or choose fewer genes (--genes) or locations (--grid-um)."
        )
    make_partial(partial_folder(out, resume=None), ("table.h5ad", "table.written", "features/*"))
    with file_lock(work / LOCK) as mine:
        if not mine:
            raise InUse(out)
        tmp = work / "table.h5ad"
        try:
            features = _features(predictor, slide, grid, work / "features")
            features.encode(cache, batch)
            table = TableFile(tmp, count, fingerprint(features.name, predictor.genes, predictor.provenance()))
            try:
                _fill(table, predictor, slide, grid, features)
            finally:
                table.close()
            if out.suffix == STORE:
                with StoredPrediction(tmp) as stored:
                    export(stored, out, slide=slide, overwrite=True)
            else:
                with translate_os_errors(out):
                    tmp.replace(out)
        except NoSpace:
            tmp.unlink(missing_ok=True)
            raise
        except CmrcnetError:
            remove_partial(work)
            raise
        remove_partial(work)
    return count, len(predictor.genes)


def chunk_size(genes: int) -> int:
    """Locations of a chunk for so many genes: a multiple of 256 that `CHUNK_BYTES` hold, from 256 to 4,096."""
    return int(np.clip(CHUNK_BYTES // (4 * max(genes, 1)) // 256 * 256, 256, 4_096))


def _features(predictor: Predictor, slide: Slide, grid: QueryGrid, folder: Path | None = None) -> LocationFeatures:
    """Features that the predictor needs, with image statistics where it has an out-of-distribution detector."""
    return LocationFeatures(
        predictor.encoder,
        slide,
        grid.locations,
        folder,
        anchor_px=grid.anchor_px,
        window_um=predictor.options.window_um,
        with_statistics=predictor.ood_detector is not None,
    )


def _fill(
    table: TableFile | _TableInMemory,
    predictor: Predictor,
    slide: Slide,
    grid: QueryGrid,
    features: LocationFeatures,
) -> AnnData:
    """Predict every chunk that is not written yet, then add what depends on all locations."""
    locations = grid.locations
    count, step = len(locations), chunk_size(predictor.columns_kept)
    with metered(f"predict {slide.name}", count, "locations") as meter:
        meter.skip(table.written)
        for start in range(table.written, count, step):
            rows = slice(start, min(start + step, count))
            chunk = predictor.predict_chunk(features.take(rows))
            mean, layers = chunk.mean, chunk.layers
            if predictor.options.half:
                mean = None if mean is None else mean.astype(np.float16)
                layers = {name: values.astype(np.float16) for name, values in layers.items()}
            table.write(rows, mean, layers=layers, obsm=chunk.obsm, obs=chunk.obs)
            del chunk, mean, layers  # before the next one is made
            meter.advance(rows.stop - rows.start)
    frame = prediction_table(
        None,
        None,
        genes=predictor.genes,
        spots=locations,
        slide=slide,
        neighbours=None,
        provenance=predictor.provenance() | given_features(slide),
        in_tissue=grid.tissue.contains(locations.centre_px),
    )
    predictor.annotate(frame, table.neighbour_rows())
    if predictor.decoder is not None:
        level, directions = predictor.decoder
        frame.var["level"], frame.varm["loadings"] = level, np.ascontiguousarray(directions.T)
    detector, statistics = predictor.ood_detector, features.statistics()
    if detector is not None and statistics is not None:
        flag_out_of_distribution(frame, detector, statistics, slide.name)
    table.finish(frame)
    return frame


@dataclass(eq=False)
class _TableInMemory:
    """A prediction table that is filled as `TableFile` is, but in memory."""

    locations: int
    written: int = field(default=0, init=False)
    _arrays: dict[tuple[str, str], np.ndarray] = field(default_factory=dict, init=False)

    def write(
        self,
        rows: slice,
        mean: np.ndarray | None,
        *,
        layers: Mapping[str, np.ndarray],
        obsm: Mapping[str, np.ndarray],
        obs: Mapping[str, np.ndarray],
    ) -> None:
        """Write some rows; parameters as `TableFile.write`."""
        for group, arrays in (
            ("X", {} if mean is None else {"": mean}),
            ("layers", layers),
            ("obsm", obsm),
            ("obs", obs),
        ):
            for name, values in arrays.items():
                if (group, name) not in self._arrays:
                    self._arrays[group, name] = np.empty((self.locations, *values.shape[1:]), values.dtype)
                self._arrays[group, name][rows] = values

    def neighbour_rows(self) -> np.ndarray:
        """Rows of the bank that are a neighbour of any location, each once, sorted."""
        return np.unique(self._arrays.get(("obsm", "neighbour_ids"), np.empty(0, np.int64)))

    def finish(self, frame: AnnData) -> None:
        """Put everything that was written into the frame."""
        for (group, name), values in self._arrays.items():
            if group == "X":
                frame.X = values
            else:
                getattr(frame, group)[name] = values
