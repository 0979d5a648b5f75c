"""10x Visium HD: `outs/binned_outputs/square_002um` and its coarser siblings, as Space Ranger 3 and 4 write them.

Bins
    The array is a grid of squares of 2 um. Space Ranger also writes it summed to 8 and 16 um. `bin_um` is any multiple
    of 2 um: where Space Ranger wrote a folder of that size it is used as it is, otherwise the finest bins at hand that
    divide it (those of 2 um) are summed by their `array_row` and `array_col`. Only bins under tissue are summed, and
    a merged bin of which less than half is under tissue is dropped. Its centre is the mean of the centres of its bins.
    A bin of 8 um holds few transcripts: for training, 48 to 112 um are sensible.
Spot
    `diameter_um` is the side of the bin, as for the square grid of a prediction.
Positions
    `spatial/tissue_positions.parquet`: pixels of the full-resolution microscope image that Space Ranger was given. That
    image is not part of `outs`: it is given as `image`. Without it `spatial/tissue_hires_image.png` is used, and noted.
Scale
    `microns_per_pixel` of `scalefactors_json.json`, which must agree with the distance of the bins.
Memory
    A slide has 10^7 bins of 2 um. Positions are read in batches, the matrix in blocks of columns that are summed into
    the rows of the result, so that the fine matrix is never held.

Long because it is one thing: this platform.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from cmrcnet.errors import BadInput, BadOption, CmrcnetError, MissingInput, ScaleError, SectionError
from cmrcnet.readers.long_tables import numbers_of, parquet_batches
from cmrcnet.readers.raw_section import RawSection
from cmrcnet.readers.registry import SectionSource, register_reader
from cmrcnet.readers.sparse_files import open_h5
from cmrcnet.readers.visium import GENES, H5, POSITION_COLUMNS, picture_of, read_scale_factors, version_seen
from cmrcnet.slides.slide import open_slide

BIN_UM = 8
"""Side of a bin where the user states none: the size that Space Ranger recommends."""
FINEST_UM = 2
LEAST_TISSUE = 0.5
"""Least share of a merged bin that is under tissue."""
MOST_UNLISTED = 0.02
"""Largest share of the counted bins that may be absent from the positions file."""
SCALE_TOLERANCE = 1.1
"""Largest factor between microns_per_pixel and the scale that the distance of the bins makes."""
MOST_BINS = 1 << 28
"""Rows times columns of an array; the largest (11 mm at 2 um) has 3e7."""
BLOCK_VALUES = 8 << 20
"""Stored counts that are read at once."""

SEGMENTED = "segmented_outputs"
"""Cells of Space Ranger 4, which are not read."""

FOLDER = re.compile(r"square_(\d{3,4})um")
BARCODE = re.compile(rb"s_(\d{3,4})um_(\d+)_(\d+)-(\d+)")
MATRIX = "filtered_feature_bc_matrix.h5"
POSITIONS = "bin positions (tissue_positions.parquet)"


def looks_like_visium_hd(path: Path) -> bool:
    """An `outs` folder with `binned_outputs`, the folder above it, `binned_outputs` or one `square_XXXum` in it."""
    bases = [path / outs / name for outs in (".", "outs") for name in ("binned_outputs", SEGMENTED)]
    found = path.name == SEGMENTED or any(base.is_dir() for base in bases)
    return path.is_dir() and (found or bool(_bin_folders(path)))


def visium_hd_problems(source: SectionSource) -> list[CmrcnetError]:
    """Errors for a bin size that cannot be made, and a missing matrix, positions file, scale factors or picture."""
    try:
        folder, _, _ = _folder_for(source)
    except CmrcnetError as error:
        return [error]
    problems: list[CmrcnetError] = []
    for path, what in (
        (folder / MATRIX, "The count matrix"),
        (source.spots or folder / "spatial" / "tissue_positions.parquet", "The file of bin positions"),
        (folder / "spatial" / "scalefactors_json.json", "The file of scale factors"),
    ):
        if not path.is_file():
            matrices = sorted(folder.parent.glob("square_*um/*_feature_bc_matrix.h5"))
            seen = version_seen(folder.resolve().parents[1], matrices)
            where = f"outs/binned_outputs/{path.relative_to(folder.parent)}" if folder in path.parents else path.name
            problems.append(
                MissingInput(path, what, f"Space Ranger 3 or later writes {where} ({seen}), copy it from there")
            )
    if source.image is None and not _hires(folder).is_file():
        want = "the full-resolution microscope image that Space Ranger was given, which it does not copy"
        problems.append(BadOption("image", None, want=want))
    return problems


@register_reader("visium_hd", recognises=looks_like_visium_hd, problems=visium_hd_problems, binned=True)
def read_visium_hd(source: SectionSource) -> RawSection:
    """Read one Visium HD capture area at one size of bin.

    Parameters
    ----------
    source : SectionSource
        `path` is `outs`, the folder above it, `binned_outputs`, or one `square_XXXum` folder; `image` the
        full-resolution microscope image; `bin_um` a multiple of 2, 8 by default.

    Raises
    ------
    MissingExtra, MissingInput, BadInput, BadOption, SectionError, ScaleError
    """
    folder, fine_um, factor = _folder_for(source)
    bin_um = fine_um * factor
    grid = read_bin_grid(source.spots or folder / "spatial" / "tissue_positions.parquet", factor)
    counts = summed_counts(folder / MATRIX, grid)
    notes = list(counts.notes)
    if factor > 1:
        notes.insert(0, f"Bins of {bin_um} um are sums of bins of {fine_um} um.")

    above = [part for part in source.path.resolve().parts if part not in ("outs", "binned_outputs")]
    name = source.name or [part for part in above if not FOLDER.fullmatch(part)][-1]
    factors = read_scale_factors(folder / "spatial" / "scalefactors_json.json")
    pitch_px = grid.pitch_px()
    mpp = factors.get("microns_per_pixel")
    measured = None if pitch_px is None else bin_um / pitch_px
    if mpp is None:
        mpp = measured
        notes.append(f"um per px is measured: bins of {bin_um} um are {pitch_px or 0:.4g} px apart: {mpp or 0:.4g}.")
    elif measured is not None and not 1 / SCALE_TOLERANCE <= measured / mpp <= SCALE_TOLERANCE:
        evidence = f"its bins of {bin_um} um are {pitch_px:.4g} px apart, which makes {measured:.4g}; check that "
        evidence += (
            "tissue_positions.parquet and scalefactors_json.json, which states microns_per_pixel, belong together"
        )
        raise ScaleError.contradicted(name, mpp, evidence)
    image, scalef = picture_of(source.image or _hires(folder), folder, factors)
    slide_mpp = source.mpp or (None if mpp is None else mpp / scalef)
    if source.affine is not None:
        slide_mpp, scalef = source.mpp, 1.0
    if scalef != 1.0:
        notes.append(f"Only the reduced picture {image.name} is at hand; give the full-resolution picture as image.")
    side_px = None if pitch_px is None else pitch_px * scalef
    return RawSection(
        name=name,
        patient=None,
        slide=open_slide(image, mpp=slide_mpp, name=name),
        barcodes=[f"s_{bin_um:03d}um_{row:05d}_{column:05d}-1" for row, column in grid.places(counts.bins).tolist()],
        centre_px=grid.centre_px[counts.bins] * scalef,
        diameter_um=source.spot_diameter_um or float(bin_um),
        counts=counts.values,
        genes=counts.genes,
        absent_genes="unmeasured",
        pitch_um=(bin_um, bin_um),
        pitch_px=side_px,
        assay_mpp=mpp,
        notes=tuple(notes),
    )


def _bin_folders(path: Path) -> dict[int, Path]:
    """Bin folders by their size in micrometres."""
    if named := FOLDER.fullmatch(path.resolve().name):
        return {int(named[1]): path} if (path / "spatial").is_dir() else {}
    for base in (path, path / "binned_outputs", path / "outs" / "binned_outputs"):
        if base.is_dir():
            inside = [folder for folder in base.glob("square_*um") if folder.is_dir()]
            named_folders = [(FOLDER.fullmatch(folder.name), folder) for folder in inside]
            if found := {int(name[1]): folder for name, folder in named_folders if name}:
                return found
    return {}


def _folder_for(source: SectionSource) -> tuple[Path, int, int]:
    """The folder to read, the side of its bins in micrometres, and how many of them a wanted bin spans."""
    folders = _bin_folders(source.path)
    inside = (source.path, *source.path.glob("*"), *source.path.glob("outs/*"))
    if not folders and any(path.name == SEGMENTED for path in inside):
        why = f"the cells of {SEGMENTED} are not read; give outs with the binned_outputs that Space Ranger writes too"
        raise BadInput(source.path, "Visium HD bins", why)
    if not folders:
        hint = "Space Ranger 3 or later writes bins there: outs/binned_outputs/square_002um, _008um and _016um"
        raise MissingInput(source.path / "binned_outputs", "The folder", hint)
    own = FOLDER.fullmatch(source.path.resolve().name)
    wanted = source.bin_um or (int(own[1]) if own else BIN_UM)
    if wanted % FINEST_UM:
        raise BadOption("bin_um", wanted, want="a multiple of 2, the micrometres of the finest bins")
    fitting = [um for um in sorted(folders) if wanted % um == 0]
    if not fitting:
        base = next(iter(folders.values())).parent
        sizes = ", ".join(f"{um} um" for um in sorted(folders))
        hint = f"bins of {wanted:g} um are summed from it, and only {sizes} are at hand"
        raise MissingInput(base / f"square_{FINEST_UM:03d}um", "The folder of 2 um bins", hint)
    fine_um = int(wanted) if wanted in folders else fitting[0]
    return folders[fine_um], fine_um, int(wanted) // fine_um


def _hires(folder: Path) -> Path:
    """The reduced picture of a bin folder, or of `outs/spatial` where that has none."""
    own, shared = (base / "spatial" / "tissue_hires_image.png" for base in (folder, folder.resolve().parents[1]))
    return shared if shared.is_file() and not own.is_file() else own


# --- positions ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class BinGrid:
    """Places of the bins of an array, and of the larger bins that they are merged into.

    Parameters
    ----------
    tissue : numpy.ndarray, shape (rows, columns), int8
        1 for a bin under tissue, 0 for one that is not, -1 for one that the file does not list.
    size_um : int
        Side of these bins in micrometres, by their names.
    factor : int
        Bins a side of a merged bin.
    columns : int
        Merged bins in a row of the array.
    listed, under_tissue : numpy.ndarray, shape (merged bins,), int32
        How many bins of each merged bin the file lists, and how many are under tissue.
    centre_px : numpy.ndarray, shape (merged bins, 2), float64
        x, y of the mean of their centres; NaN where none is listed.
    """

    tissue: np.ndarray
    size_um: int
    factor: int
    columns: int
    listed: np.ndarray
    under_tissue: np.ndarray
    centre_px: np.ndarray

    def places(self, bins: np.ndarray) -> np.ndarray:
        """Row and column of merged bins, shape (n, 2)."""
        return np.column_stack(np.divmod(bins, self.columns))

    def pitch_px(self) -> float | None:
        """Median distance of the centres of neighbouring merged bins in pixels; None without any pair."""
        whole = (self.listed == self.factor**2).reshape(-1, self.columns)
        centres = np.where(whole[..., None], self.centre_px.reshape(*whole.shape, 2), np.nan)
        steps = [np.linalg.norm(np.diff(centres, axis=axis), axis=2).ravel() for axis in (0, 1)]
        steps = np.concatenate(steps)
        steps = steps[np.isfinite(steps)]
        return float(np.median(steps)) if len(steps) else None


def read_bin_grid(path: Path, factor: int) -> BinGrid:
    """Read `tissue_positions.parquet` in batches.

    Parameters
    ----------
    path : pathlib.Path
        Columns barcode, in_tissue, array_row, array_col, pxl_row_in_fullres, pxl_col_in_fullres.
    factor : int
        Bins a side of a merged bin.

    Raises
    ------
    MissingExtra, MissingInput, BadInput
        The barcodes state other places than array_row and array_col, or the columns do not hold numbers.
    """
    last = np.array([-1, -1])
    for batch in parquet_batches(path, POSITIONS, ("array_row", "array_col")):
        places = _places(batch, path)
        last = np.maximum(last, places.max(axis=0, initial=-1))
        if places.min(initial=0) < 0 or np.prod(last + 1) > MOST_BINS:
            raise BadInput(path, POSITIONS, f"its array has rows and columns up to {last[0]} and {last[1]}")
    if last.min() < 0:
        raise BadInput(path, POSITIONS, "it lists no bin")
    rows, columns = (int(n) for n in last + 1)
    tissue = np.full((rows, columns), -1, np.int8)
    merged = (-(-rows // factor), -(-columns // factor))
    total = merged[0] * merged[1]
    listed, under = np.zeros(total, np.int32), np.zeros(total, np.int32)
    sums = np.zeros((2, total))
    sizes = set()
    for batch in parquet_batches(path, POSITIONS, POSITION_COLUMNS):
        row, column = places = _places(batch, path).T
        size, *named = _named_places(_fixed_bytes(batch.column("barcode"), path), path)
        if not np.array_equal(named, places):
            raise BadInput(path, POSITIONS, "its barcodes name other places than array_row and array_col")
        sizes.add(size)
        under_tissue = numbers_of(batch, "in_tissue", path, POSITIONS) == 1
        tissue[row, column] = under_tissue
        block = row // factor * merged[1] + column // factor
        listed += np.bincount(block, minlength=total).astype(np.int32)
        under += np.bincount(block, weights=under_tissue, minlength=total).astype(np.int32)
        for axis, key in enumerate(("pxl_col_in_fullres", "pxl_row_in_fullres")):
            sums[axis] += np.bincount(block, weights=numbers_of(batch, key, path, POSITIONS), minlength=total)
    if int(listed.sum()) != int((tissue >= 0).sum()):
        raise BadInput(path, POSITIONS, "it lists a place of the array several times")
    if len(sizes) > 1:
        raise BadInput(path, POSITIONS, f"it mixes bins of {' and '.join(map(str, sorted(sizes)))} um")
    with np.errstate(invalid="ignore"):
        centres = (sums / np.where(listed, listed, np.nan)).T
    return BinGrid(tissue, sizes.pop(), factor, merged[1], listed, under, np.ascontiguousarray(centres))


def _places(batch, path: Path) -> np.ndarray:
    """array_row and array_col of a batch, shape (n, 2), int64."""
    return np.column_stack(
        [numbers_of(batch, column, path, POSITIONS).astype(np.int64) for column in ("array_row", "array_col")]
    )


def _fixed_bytes(texts, path: Path) -> np.ndarray:
    """A Parquet column of texts of one length as NumPy bytes, without a copy of each."""
    import pyarrow
    from pyarrow import compute

    functions: Any = compute  # which are made when the module is imported

    plain = texts.cast(pyarrow.string()).cast(pyarrow.binary())
    lengths = functions.min_max(functions.binary_length(plain)).as_py()
    if plain.null_count or lengths["min"] != lengths["max"] or not lengths["max"]:
        raise BadInput(path, POSITIONS, "its barcodes are not written alike; give one capture area")
    first = int(np.frombuffer(plain.buffers()[1], np.int32, count=1, offset=4 * plain.offset)[0])
    return np.frombuffer(plain.buffers()[2], f"S{lengths['max']}", count=len(plain), offset=first)


def _named_places(barcodes: np.ndarray, path: Path) -> tuple[int, np.ndarray, np.ndarray]:
    """Size in micrometres, rows and columns that barcodes such as s_002um_00012_00345-1 state.

    All must be written alike: as long, of the same size and with the same library behind the dash.
    """
    if not len(barcodes):
        return 0, np.empty(0, np.int64), np.empty(0, np.int64)
    first = BARCODE.fullmatch(bytes(barcodes[0]))
    if first is None:
        raise BadInput(
            path, "Visium HD bins", f"the barcode {bytes(barcodes[0])[:40].decode('latin-1')!r} names no bin"
        )
    letters = np.ascontiguousarray(barcodes).view(np.uint8).reshape(len(barcodes), -1)
    digits = np.zeros(letters.shape[1], bool)
    for group in (2, 3):
        digits[slice(*first.span(group))] = True
    same = (letters[:, ~digits] == letters[0, ~digits]).all()
    numbers = letters[:, digits].astype(np.int64) - ord("0")
    if not same or (numbers < 0).any() or (numbers > 9).any():
        wrong = (
            (letters[:, ~digits] != letters[0, ~digits]).any(axis=1)
            | (numbers < 0).any(axis=1)
            | (numbers > 9).any(axis=1)
        )
        other = bytes(barcodes[np.flatnonzero(wrong)[0]])[:40].decode("latin-1")
        why = f"the barcodes {bytes(barcodes[0]).decode()!r} and {other!r} are not written alike; give one capture area"
        raise BadInput(path, "Visium HD bins", why)
    wide = first.end(2) - first.start(2)
    tens = 10 ** np.arange(max(wide, numbers.shape[1] - wide))[::-1]
    rows, columns = numbers[:, :wide] @ tens[-wide:], numbers[:, wide:] @ tens[-(numbers.shape[1] - wide) :]
    return int(first[1]), rows, columns


# --- counts ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SummedCounts:
    """Counts of merged bins.

    Parameters
    ----------
    bins : numpy.ndarray, shape (spots,), int64
        Index of each row in the arrays of `BinGrid`, rising.
    genes : tuple of str
        Symbols; may repeat.
    values : scipy.sparse.csr_matrix, shape (spots, genes)
    notes : tuple of str
        What was dropped.
    """

    bins: np.ndarray
    genes: tuple[str, ...]
    values: sparse.csr_matrix
    notes: tuple[str, ...]


def summed_counts(path: Path, grid: BinGrid, block_values: int = BLOCK_VALUES) -> SummedCounts:
    """Sum a 10x matrix of bins into merged bins, block by block.

    Parameters
    ----------
    path : pathlib.Path
        `filtered_feature_bc_matrix.h5`.
    grid : BinGrid
        Of the same bins.
    block_values : int
        Stored counts that are read at once; it bounds the memory beside the result.

    Raises
    ------
    MissingInput, BadInput, SectionError
    """
    with open_h5(path, H5, in_blocks=True) as file:
        group = file["matrix"]
        kinds, names = (group[f"features/{key}"].asstr()[:] for key in ("feature_type", "name"))
        shape = tuple(int(n) for n in group["shape"][:])
        starts = _checked_starts(path, group, shape, len(names), len(kinds))
        blocks, notes = _blocks_of_columns(path, group["barcodes"], grid)
        is_gene = kinds == GENES
        if not is_gene.all():
            others = ", ".join(sorted(set(kinds[~is_gene])))
            notes.append(f"{int((~is_gene).sum())} features are of another kind ({others}): left out.")
        bins = np.flatnonzero(np.bincount(blocks[blocks >= 0], minlength=len(grid.listed)))
        row_of = np.full(len(grid.listed) + 1, -1, np.int32)  # the last entry is that of -1
        row_of[bins] = np.arange(len(bins))
        spot_of = row_of[blocks]
        del blocks
        genes = int(is_gene.sum())
        gene_of = np.where(is_gene, np.cumsum(is_gene) - 1, genes).astype(np.int32)
        values = _joined(_summed_rows(path, group, starts, spot_of, gene_of, len(bins), genes, block_values))
    return SummedCounts(bins, tuple(names[is_gene]), values, tuple(notes))


def _checked_starts(path: Path, group, shape: tuple[int, ...], names: int, kinds: int) -> np.ndarray:
    """`indptr`, when the sizes of the stored arrays agree with each other and with it."""
    starts = np.asarray(group["indptr"][:], dtype=np.int64)
    stored = (len(group["data"]), len(group["indices"]))
    if shape != (names, len(group["barcodes"])) or kinds != names or len(starts) != shape[1] + 1:
        sizes = f"{names} features, {len(group['barcodes'])} barcodes and {len(starts) - 1} columns"
        why = f"{sizes} do not fit {shape} counts"
        raise BadInput(path, H5, why)
    if starts[0] != 0 or starts[-1] != stored[0] or stored[0] != stored[1] or (np.diff(starts) < 0).any():
        raise BadInput(path, H5, f"its indptr does not fit the {stored[0]} counts and {stored[1]} indices")
    return starts


def _blocks_of_columns(path: Path, barcodes, grid: BinGrid, batch: int = 1 << 20) -> tuple[np.ndarray, list[str]]:
    """Merged bin of each column of the matrix, -1 for one that is not read, int32; and what is not read."""
    blocks = np.full(len(barcodes), -1, np.int32)
    seen = np.zeros(grid.tissue.shape, bool)
    unlisted = off_tissue = read = 0
    for start in range(0, len(barcodes), batch):
        size, row, column = _named_places(np.asarray(barcodes[start : start + batch], dtype=np.bytes_), path)
        if size != grid.size_um:
            raise BadInput(path, H5, f"its bins are of {size} um, and the listed positions of {grid.size_um} um")
        inside = (row < grid.tissue.shape[0]) & (column < grid.tissue.shape[1])
        state = np.full(len(row), -1, np.int8)
        state[inside] = grid.tissue[row[inside], column[inside]]
        unlisted += int((state < 0).sum())
        off_tissue += int((state == 0).sum())
        rows = np.flatnonzero(state == 1)
        read += len(rows)
        seen[row[rows], column[rows]] = True
        blocks[start + rows] = row[rows] // grid.factor * grid.columns + column[rows] // grid.factor
    if twice := read - int(seen.sum()):
        raise SectionError(f"{path} repeats {twice} barcodes; each bin needs a name of its own.")
    if unlisted > MOST_UNLISTED * len(blocks):
        why = f"{unlisted} of its {len(blocks)} bins have no position; check that matrix and positions belong together"
        raise BadInput(path, H5, why)
    notes = []
    if unlisted:
        notes.append(f"{unlisted} of {len(blocks)} bins have no position: dropped.")
    if off_tissue:
        notes.append(f"{off_tissue} of {len(blocks)} bins are not under tissue: dropped.")
    partly = (grid.under_tissue > 0) & (grid.under_tissue < LEAST_TISSUE * grid.listed)
    if partly.any():
        blocks[(blocks >= 0) & partly[blocks]] = -1
        notes.append(f"{int(partly.sum())} merged bins have less than half of their area under tissue: dropped.")
    return blocks, notes


def _summed_rows(
    path: Path,
    group,
    starts: np.ndarray,
    spot_of: np.ndarray,
    gene_of: np.ndarray,
    spots: int,
    genes: int,
    block_values: int,
) -> Iterator[sparse.csr_matrix]:
    """Whole rows of the summed matrix in their order, as soon as no later column adds to them."""
    width = int(gene_of.max(initial=genes - 1)) + 1  # features that are no genes are summed in one column behind them
    edges = _block_edges(starts, block_values)
    lowest = [int(spot_of[lo:hi][spot_of[lo:hi] >= 0].min(initial=spots)) for lo, hi in pairwise(edges)]
    still = np.minimum.accumulate([*lowest, spots][::-1])[::-1]  # the lowest row that this or a later block adds to
    base = 0
    open_rows: Any = sparse.csr_matrix((0, width), dtype=np.int64)
    for i, (lo, hi) in enumerate(pairwise(edges)):
        features = np.asarray(group["indices"][starts[lo] : starts[hi]])
        counted = np.asarray(group["data"][starts[lo] : starts[hi]])
        if len(features) and not 0 <= int(features.min()) <= int(features.max()) < len(gene_of):
            raise BadInput(path, H5, f"an index of a feature is outside the {len(gene_of)} features")
        if counted.dtype.kind in "iu":
            counted = counted.astype(np.int64)
        columns = sparse.csr_matrix(
            (counted, gene_of[features], starts[lo : hi + 1] - starts[lo]), shape=(hi - lo, width)
        )
        read = np.flatnonzero(spot_of[lo:hi] >= 0)
        into = spot_of[lo:hi][read] - base
        top = max(int(into.max(initial=-1)) + 1, open_rows.shape[0])
        ones = np.ones(len(read), dtype=columns.dtype)
        block = sparse.csr_matrix((ones, (into, read)), shape=(top, hi - lo)) @ columns
        open_rows.resize(top, width)
        open_rows = sparse.csr_matrix(open_rows + block)
        done = int(still[i + 1]) - base
        if done > 0:
            open_rows.resize(max(done, top), width)
            yield open_rows[:done] if width == genes else open_rows[:done, :genes]
            open_rows, base = open_rows[done:], base + done


def _block_edges(starts: np.ndarray, block_values: int) -> list[int]:
    """Columns at which the blocks begin, and the end: each of about `block_values` counts, at least one column."""
    edges = [0]
    while edges[-1] < len(starts) - 1:
        end = int(np.searchsorted(starts, starts[edges[-1]] + block_values, side="right")) - 1
        edges.append(max(end, edges[-1] + 1))
    return edges


def _joined(parts: Iterator[sparse.csr_matrix]) -> sparse.csr_matrix:
    """Parts one under the other, in the smallest types that hold them."""
    indices, values, ends, genes, end = [], [], [np.zeros(1, np.int64)], 0, 0
    part: Any
    for part in parts:
        genes = part.shape[1]
        small = (
            part.data.dtype.kind in "iu"
            and (part.data.max(initial=0) < 1 << 31)
            and part.data.min(initial=0) >= -(1 << 31)
        )
        indices.append(part.indices.astype(np.int32))
        values.append(part.data.astype(np.int32) if small else part.data)
        ends.append(part.indptr[1:].astype(np.int64) + end)
        end += part.nnz
    joined_indices = np.concatenate(indices) if indices else np.empty(0, np.int32)
    indices.clear()
    joined_values = np.concatenate(values) if values else np.empty(0, np.int32)
    values.clear()
    joined_ends = np.concatenate(ends)
    if end < 1 << 31:
        joined_ends = joined_ends.astype(np.int32)
    return sparse.csr_matrix((joined_values, joined_indices, joined_ends), shape=(len(joined_ends) - 1, genes))
