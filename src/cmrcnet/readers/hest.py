"""HEST-1k and HEST-Bench folders (Jaume et al., NeurIPS 2024).

    root/  st/ID.h5ad or adata/ID.h5ad   counts; obsm["spatial"] is the spot CENTRE in level-0 pixels
           patches/ID.h5                 img, barcode, coords = top-left CORNER in level-0 pixels; 0.5 um per px
           wsis/ID.tif                   the slide (absent in HEST-Bench)
           metadata/ID.json              pixel_size_um_estimated, patient, st_technology, ... (may be absent)

The table may list every location of the array; only the barcodes of the patch file are tissue. Without a slide, the
patches themselves serve as one (`PatchSlide`), and the positions are given in its pixels. Without a scale in the
metadata it follows from the patches: a centre lies half a patch, 56 um for 224 px, from its corner. Long because it is
one thing: this platform.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cmrcnet.errors import BadInput, BadOption, CmrcnetError, MissingInput, ScaleError, SectionError, ShapeMismatch
from cmrcnet.readers.ann_data import in_hest_folder, raw_counts, read_h5ad
from cmrcnet.readers.raw_section import RawSection, refuse_unmatched
from cmrcnet.readers.registry import SectionSource, register_reader
from cmrcnet.readers.sparse_files import open_h5
from cmrcnet.readers.text_files import read_json
from cmrcnet.slides.section import repeated
from cmrcnet.slides.slide import WHITE, open_slide
from cmrcnet.slides.spot_tables import spatial_centres
from cmrcnet.storage.hashing import fingerprint_stream
from cmrcnet.storage.names import id_text

PATCH_MPP = 0.5
TABLE_FOLDERS = ("st", "adata")
SLIDE_SUFFIXES = (".tif", ".tiff", ".svs", ".ndpi")
PATCH_TOLERANCE = 1.5
"""Largest factor between the scale and that of the patches."""
ASSAYS = {"visium": (55.0, 100.0), "xenium": (55.0, 100.0), "spatial transcriptomics": (100.0, 200.0)}
"""Spot diameter and pitch in um by `st_technology`; HEST pools Xenium transcripts into Visium-like spots."""
UNKNOWN_PITCH_UM = (55.0, 200.0)


def looks_like_hest(path: Path) -> bool:
    """A folder with `st/` or `adata/` and `patches/` or `wsis/`, or an `.h5ad` in it."""
    if path.is_file():
        return path.suffix == ".h5ad" and in_hest_folder(path)
    has_tables = any((path / folder).is_dir() for folder in TABLE_FOLDERS)
    return has_tables and ((path / "patches").is_dir() or (path / "wsis").is_dir())


def hest_problems(source: SectionSource) -> list[CmrcnetError]:
    """Errors for a missing table, or for a section with neither slide nor patches."""
    try:
        files = _hest_files(source)
    except CmrcnetError as error:
        return [error]
    if source.image is None and files.slide is None and files.patches is None:
        patches = files.root / "patches" / f"{files.id}.h5"
        return [MissingInput(patches, "The patch file", "nor is there a slide in wsis")]
    return []


@register_reader("hest", recognises=looks_like_hest, problems=hest_problems)
def read_hest(source: SectionSource) -> RawSection:
    """Read one section of a HEST folder.

    Parameters
    ----------
    source : SectionSource
        `path` is the `.h5ad`, or the root when it holds one section or `name` says which.

    Raises
    ------
    MissingInput, BadInput, SectionError, BadOption, ScaleError
    """
    files = _hest_files(source)
    table = read_h5ad(files.table)
    metadata = {} if files.metadata is None else read_json(files.metadata, "The HEST metadata")
    name = source.name or files.id
    counts, genes, _ = raw_counts(table, name)
    barcodes = [str(barcode) for barcode in table.obs_names]
    if len(set(barcodes)) < len(barcodes):
        raise SectionError.repeated_barcodes(
            sorted({b for b in barcodes if barcodes.count(b) > 1}), f"the spots of {name}"
        )
    centres = spatial_centres(table, files.table)
    notes: list[str] = []
    rows = np.arange(len(barcodes))
    patches = None
    if files.patches is not None:
        patches = _read_patches(files.patches)
        rows, row_of_patch = _tissue(barcodes, patches, notes)
        corner_px = patches.corner_px[row_of_patch]
    else:
        corner_px = np.empty((0, 2))
        notes.append("There is no patch file, so every listed spot counts as tissue.")

    stated = source.mpp if source.affine is None else None  # with an affine, mpp is the scale of another picture
    mpp, how = _scale(stated, metadata, patches, centres[rows], corner_px, name)
    if how:
        notes.append(how)
    image = source.image or files.slide
    if image is not None:
        slide_mpp = mpp if source.affine is None else source.mpp
        slide, centres = open_slide(image, mpp=slide_mpp, name=name), centres[rows]
    elif patches is None:
        raise hest_problems(source)[0]
    elif mpp is None:
        raise ScaleError.unknown(name)
    else:
        to_patch_px = mpp / PATCH_MPP
        slide = PatchSlide(patches.path, np.round(patches.corner_px * to_patch_px).astype(np.int64), PATCH_MPP, name)
        centres = np.round(corner_px * to_patch_px) + slide.side_px / 2
        notes.append(
            f"There is no slide, so the patches serve as one: positions are in their pixels ({PATCH_MPP:g} um)."
        )
    technology = str(metadata.get("st_technology", "")).lower()
    diameter, pitch = ASSAYS.get(technology, (None, None))
    pitch = _positive(metadata.get("inter_spot_dist")) or pitch
    diameter = source.spot_diameter_um or _positive(metadata.get("spot_diameter")) or diameter
    if diameter is None:
        diameter = 55.0
        notes.append("No spot diameter is given; 55 um, HEST's value for Visium and pooled Xenium, is assumed.")
    return RawSection(
        name=name,
        patient=id_text(metadata.get("patient")) or None,
        slide=slide,
        barcodes=[barcodes[row] for row in rows],
        centre_px=centres,
        diameter_um=diameter,
        counts=counts[rows],
        genes=genes,
        absent_genes="zero" if technology == "spatial transcriptomics" else "unmeasured",
        pitch_um=(pitch, pitch) if pitch else UNKNOWN_PITCH_UM,
        assay_mpp=mpp,
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class _HestFiles:
    """The files of one HEST section."""

    id: str
    root: Path
    table: Path
    patches: Path | None
    slide: Path | None
    metadata: Path | None


@dataclass(frozen=True, eq=False)
class _Patches:
    """Barcodes and corners of a patch file, without its pixels."""

    path: Path
    barcodes: list[str]
    corner_px: np.ndarray
    side_px: int


def _hest_files(source: SectionSource) -> _HestFiles:
    path = source.path
    if path.is_file():
        root, name = path.parent.parent, path.stem
    else:
        root, tables = path, [file for folder in TABLE_FOLDERS for file in (path / folder).glob("*.h5ad")]
        ids = sorted({file.stem for file in tables if not file.name.startswith(".")})
        if not ids:
            hint = "HEST-1k has it there, HEST-Bench in adata; download it again"
            raise MissingInput(path / "st" / f"{source.name or 'NAME'}.h5ad", "The table", hint)
        name = source.name if source.name in ids else ids[0] if len(ids) == 1 else None
        if name is None:
            raise BadOption("name", source.name, want=f"one of the sections in {path}: {', '.join(ids[:12])}")
    tables = [path] if path.is_file() else [root / folder / f"{name}.h5ad" for folder in TABLE_FOLDERS]
    slides = [] if source.image else [root / "wsis" / f"{name}{suffix}" for suffix in SLIDE_SUFFIXES]
    patches, metadata = root / "patches" / f"{name}.h5", root / "metadata" / f"{name}.json"
    return _HestFiles(
        name,
        root,
        _only(root, tables) or tables[0],
        patches if patches.is_file() else None,
        _only(root, slides),
        metadata if metadata.is_file() else None,
    )


def _only(root: Path, candidates: list[Path]) -> Path | None:
    found = [path for path in candidates if path.is_file()]
    if len(found) > 1:
        several = " and ".join(str(path.relative_to(root)) for path in found)
        raise BadInput(root, "one section", f"it holds {several}; remove one or give one as counts or image")
    return found[0] if found else None


def _read_patches(path: Path) -> _Patches:
    with open_h5(path, PATCH_FILE, in_blocks=True) as content:
        key = "barcode" if "barcode" in content else "barcodes"
        barcodes = [b.decode() if isinstance(b, bytes) else str(b) for b in np.asarray(content[key]).reshape(-1)]
        corners = np.asarray(content["coords"], dtype=np.float64).reshape(-1, 2)
        count, side = content["img"].shape[:2]
    if not len(barcodes) == len(corners) == count:
        raise BadInput(path, PATCH_FILE, f"{len(barcodes)} barcodes, {len(corners)} coords and {count} patches")
    if len(set(barcodes)) < count:
        raise SectionError.repeated_barcodes(repeated(barcodes), path.name)
    return _Patches(path, barcodes, corners, int(side))


def _tissue(barcodes: list[str], patches: _Patches, notes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the table that have a patch, in the table's order, and the patch of each."""
    patch_of = {barcode: i for i, barcode in enumerate(patches.barcodes)}
    rows = np.array([i for i, barcode in enumerate(barcodes) if barcode in patch_of], dtype=np.int64)
    if len(rows) < len(barcodes):
        notes.append(f"{len(barcodes) - len(rows)} of {len(barcodes)} listed spots have no patch (no tissue): dropped.")
    if uncounted := sorted(set(patch_of) - set(barcodes)):
        hint = "check that table and patch file are of one section"
        refuse_unmatched(uncounted, len(patch_of), f"patches of {patches.path.name} have no counts", hint)
        notes.append(f"{len(uncounted)} patches have no counts: left out.")
    return rows, np.array([patch_of[barcodes[i]] for i in rows], dtype=np.int64)


def _scale(
    stated: float | None,
    metadata: dict,
    patches: _Patches | None,
    centres: np.ndarray,
    corner_px: np.ndarray,
    name: str,
) -> tuple[float | None, str]:
    """Micrometres per level-0 pixel and its source; it must agree with centres and patch corners."""
    from_patches = None
    if patches is not None and len(centres):
        half_px = float(np.median(centres - corner_px))
        if half_px > 0:
            from_patches = patches.side_px * PATCH_MPP / 2 / half_px
    for key in ("pixel_size_um_estimated", "pixel_size_um_embedded"):
        written = _positive(metadata.get(key))
        if written:
            break
    mpp = stated or written or from_patches
    if mpp and patches and from_patches and not 1 / PATCH_TOLERANCE <= mpp / from_patches <= PATCH_TOLERANCE:
        evidence = f"its patches of {patches.side_px * PATCH_MPP:g} um lie on it as for {from_patches:.3g}"
        raise ScaleError.contradicted(name, mpp, evidence)
    if stated:
        return stated, ""
    if written:
        return written, f"um per px is {key} of the metadata: {written:.4g}."
    how = f"um per px follows from spot centres and patch corners: {from_patches:.4g}." if from_patches else ""
    return from_patches, how


def _positive(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and value > 0 else None


PATCH_FILE = "a HEST patch file (.h5)"
REDUCTIONS = (1, 4, 16)


class PatchSlide:
    """Serves regions from the patches of a HEST `.h5` file; what no patch shows is white.

    Its level-0 pixels are those of the patches (0.5 um per px in HEST), not those of the slide that they were cut
    from, so a region that is exactly one patch comes back pixel for pixel. Limits: patch corners are rounded to whole
    pixels (half a pixel, 0.25 um, at most); where patches overlap, the one whose centre is nearest to the region's
    wins; nothing is known between patches, so a slide like this is no whole slide to predict on.

    Parameters
    ----------
    path : pathlib.Path
        File with `img`, shape (patches, side, side, 3), uint8.
    corner_px : numpy.ndarray, shape (patches, 2), int64
        x, y of each top-left corner in this slide's pixels.
    mpp : float
        Micrometres per pixel of the patches.
    name : str
        Name of the section.
    """

    def __init__(self, path: Path, corner_px: np.ndarray, mpp: float, name: str) -> None:
        self.name = name
        self.mpp: float | None = mpp
        self.path = Path(path)
        self._file: Any = None
        shape, kind = self._images.shape, self._images.dtype
        if len(shape) != 4 or shape[1] != shape[2] or shape[3] != 3 or kind != np.uint8:
            raise ShapeMismatch(f"img of {path}", want="(patches, side, side, 3) uint8", got=f"{shape} {kind}")
        self.side_px = int(shape[1])
        self.corner_px = np.asarray(corner_px, dtype=np.int64)
        if self.corner_px.shape != (shape[0], 2):
            raise ShapeMismatch("corner_px", want=(shape[0], 2), got=self.corner_px.shape)
        furthest = self.corner_px.max(axis=0) + self.side_px if shape[0] else np.zeros(2, np.int64)
        self.width_px, self.height_px = (max(1, int(end)) for end in furthest)
        self.downsamples = tuple(float(by) for by in REDUCTIONS if self.side_px % by == 0)

    @property
    def _images(self) -> Any:
        """The open h5py dataset; opened again after `close` or in another process."""
        if self._file is None:
            import h5py

            try:
                self._file = h5py.File(self.path, "r", locking=False)
                self._file["img"]
            except (OSError, KeyError) as error:
                self._file = None
                raise BadInput(self.path, PATCH_FILE, "the file is truncated, damaged or lacks img") from error
        return self._file["img"]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_file": None}

    def read(self, x: int, y: int, width: int, height: int, level: int = 0) -> np.ndarray:
        """See `Slide.read`."""
        by = int(self.downsamples[level])
        region = np.full((height, width, 3), WHITE, np.uint8)
        end = np.array([x + width * by, y + height * by])
        near = np.all((self.corner_px < end) & (self.corner_px + self.side_px > [x, y]), axis=1)
        rows = np.flatnonzero(near)
        middle = (np.array([x, y]) + end) / 2
        away = ((self.corner_px[rows] + self.side_px / 2 - middle) ** 2).sum(axis=1)
        for row in rows[np.argsort(-away, kind="stable")]:
            left, top = (int(v) for v in np.round((self.corner_px[row] - [x, y]) / by))
            patch = self._patch(int(row), by)
            x0, y0 = max(left, 0), max(top, 0)  # where the patch and the region overlap
            x1, y1 = min(left + patch.shape[1], width), min(top + patch.shape[0], height)
            if x1 > x0 and y1 > y0:
                region[y0:y1, x0:x1] = patch[y0 - top : y1 - top, x0 - left : x1 - left]
        return region

    def fingerprint(self) -> str:
        """Hash of the patches and of their positions."""
        return fingerprint_stream(
            [self.corner_px, *(self._images[i : i + 256] for i in range(0, len(self.corner_px), 256))]
        )

    def close(self) -> None:
        """Close the file; it is opened again when something is read."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _patch(self, row: int, by: int) -> np.ndarray:
        try:
            pixels = self._images[row]
        except OSError as error:
            why = f"patch {row} cannot be read; the file is truncated or damaged"
            raise BadInput(self.path, PATCH_FILE, why) from error
        if by == 1:
            return pixels
        small = self.side_px // by
        return np.round(pixels.reshape(small, by, small, by, 3).mean(axis=(1, 3))).astype(np.uint8)
