"""Write sections as files: images, count tables, spot tables and cohort.csv."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cmrcnet.errors import BadOption
from cmrcnet.slides.section import Cohort, Section
from cmrcnet.slides.slide import Slide, known_scale
from cmrcnet.storage.atomic import atomic_file, atomic_folder
from cmrcnet.storage.names import file_name

_COLUMNS = ("section", "patient", "format", "counts", "spots", "image", "mpp", "spot_diameter_um")
_PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_JPEG = {"quality": 95, "subsampling": 0}


def write_cohort(
    cohort: Cohort, folder: Path | str, *, image: Literal["png", "jpg"] = "jpg", overwrite: bool = False
) -> Path:
    """Write every section as legacy ST files, one section in memory at a time, and return ``folder/cohort.csv``.

    The folder is written atomically. `image` is "jpg", at quality 95 without colour subsampling and a fifth of the
    size, or "png", which keeps every pixel. Raises `OutputExists`.
    """
    folder = Path(folder)
    if f".{image}" not in _PICTURES:
        raise BadOption("image", image, want="jpg or png")
    with atomic_folder(folder, overwrite) as tmp:
        rows = [_write_section(section, tmp, image) for section in cohort]
        facts = list(dict.fromkeys(key for row in rows for key in row if key not in _COLUMNS))
        with (tmp / "cohort.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [*_COLUMNS, *facts], restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return folder / "cohort.csv"


def write_slide(slide: Slide, path: Path | str) -> tuple[Path, float]:
    """Write a slide's level 0 as one .png, .jpg or .tif, without its scale; return the file and the mpp to open it
    with.
    """
    path = Path(path)
    if path.suffix.lower() not in _PICTURES:
        raise BadOption("path", str(path), want=f"a file name that ends in {', '.join(_PICTURES)}")
    from PIL import Image

    scale = known_scale(slide)
    picture = Image.fromarray(slide.read(0, 0, slide.width_px, slide.height_px))
    options: dict[str, Any] = {".png": {"compress_level": 1}, ".jpg": _JPEG, ".jpeg": _JPEG}.get(
        path.suffix.lower(), {}
    )
    with atomic_file(path) as tmp:
        picture.save(tmp, **options)
    return path, scale


def _write_section(section: Section, folder: Path, image: str) -> dict[str, str]:
    """Write one section's three files and return its row of cohort.csv."""
    stem = file_name(section.name)
    picture, scale = write_slide(section.slide, folder / f"{stem}.{image}")
    whole = section.table_kind == "counts"
    counts, spots = folder / (f"{stem}_counts.tsv.gz" if whole else f"{stem}_table.csv"), folder / f"{stem}_spots.tsv"
    (_write_counts if whole else _write_values)(section, counts)
    _write_spots(section, spots)
    row = (
        section.name,
        section.patient,
        "legacy_st" if whole else "feature_table",
        counts.name,
        spots.name,
        picture.name,
        f"{scale:.10g}",
        f"{section.spots.diameter_um:.10g}",
    )
    kind = {} if whole else {"table_kind": section.table_kind}
    return dict(zip(_COLUMNS, row, strict=True)) | kind | section.metadata


def _write_counts(section: Section, path: Path) -> None:
    """Spots x genes, tab separated; without a time stamp, so that equal sections make equal files."""
    lines = ["\t" + "\t".join(section.genes)]
    for number, barcode in enumerate(section.spots.barcodes):
        values = section.counts[[number]].toarray().ravel().astype(np.int64)
        lines.append(barcode + "\t" + "\t".join(map(str, values)))
    path.write_bytes(gzip.compress("\n".join([*lines, ""]).encode(), compresslevel=6, mtime=0))


def _write_values(section: Section, path: Path) -> None:
    """Spots x features of a table that is none of counts, with all digits of a float32."""
    values = section.counts.toarray()
    with path.open("w", encoding="utf-8", newline="") as text:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["spot", *section.genes])
        for barcode, row in zip(section.spots.barcodes, values, strict=True):
            writer.writerow([barcode, *(f"{value:.9g}" for value in row)])


def _write_spots(section: Section, path: Path) -> None:
    """One spot a line: name, array position where the name tells it, centre in pixels, under tissue."""
    with path.open("w", encoding="utf-8", newline="\n") as text:
        text.write("spot\tx\ty\tpixel_x\tpixel_y\tselected\n")
        for barcode, (x, y) in zip(section.spots.barcodes, section.spots.centre_px, strict=True):
            column, _, row = barcode.partition("x")
            text.write(f"{barcode}\t{column}\t{row}\t{x:.10g}\t{y:.10g}\t1\n")
