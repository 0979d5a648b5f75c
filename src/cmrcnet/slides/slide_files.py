"""The files of a slide: one, or several as DICOM, MIRAX and Hamamatsu VMS have; and their fingerprint.

OpenSlide opens a DICOM slide by any file of its series. Labels and overviews belong to a series and are no slide.
"""

from __future__ import annotations

import mmap
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from cmrcnet.errors import BadInput, MissingInput
from cmrcnet.storage.hashing import fingerprint_stream

WHOLE_BYTES = 256 << 20
"""Files up to this size are hashed whole."""
END_BYTES = 8 << 20
"""Of a larger file: this much of its head and of its tail ..."""
SAMPLE_BYTES = 256 << 10
"""... and blocks of this size ..."""
SAMPLES = 64
"""... this many, evenly spaced in between."""


def require_file(path: Path, what: str, *, kind: str = "a file", or_folder: bool = False) -> Path:
    """Refuse what is no ordinary file, without opening it: opening a named pipe would wait for ever.

    Parameters
    ----------
    what : str
        What is read, with a capital, for the error: "The cohort file".
    kind : str
        What it should be, for the error.
    or_folder : bool
        A folder will do as well.

    Raises
    ------
    MissingInput
        There is nothing at `path`.
    BadInput
        It is a folder, a pipe or a device, its name is too long, or it may not be looked at.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            said = f"{what} {path} is a link to {path.readlink()}, which does not exist"
            raise MissingInput.from_sentence(f"{said}; copy the file or correct the link.") from None
        raise MissingInput(path, what) from None
    except ValueError as error:  # a NUL in the name
        raise BadInput(repr(str(path)), kind, str(error)) from None
    except OSError as error:
        shown = path if len(str(path)) <= 200 else f"{str(path)[:200]}..."
        raise BadInput(shown, kind, error.strerror or str(error)) from error
    if not stat.S_ISREG(mode) and not (or_folder and stat.S_ISDIR(mode)):
        found = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise BadInput(path, kind, f"it is {found}, not an ordinary file")
    return path


_NAMES_A_FILE = ("ImageFile", "MapFile", "OptimisationFile")  # keys of a VMS or VMU file


def files_of_slide(path: Path, vendor: str) -> tuple[Path, ...]:
    """List the files that the pixels of a slide come from.

    Parameters
    ----------
    path : Path
        One of them.
    vendor : str
        OpenSlide's name of the format.

    Returns
    -------
    tuple of Path
        Sorted by what does not depend on the place of the slide; labels and overviews are left out.
    """
    if vendor == "mirax":
        folder = path.with_suffix("")
        return (path, *sorted(folder.iterdir())) if folder.is_dir() else (path,)
    if vendor == "hamamatsu" and path.suffix.lower() in (".vms", ".vmu"):
        pairs = (line.partition("=") for line in path.read_text(encoding="latin-1").splitlines())
        listed = [name.strip() for key, _, name in pairs if key.startswith(_NAMES_A_FILE)]
        return (path, *(file for name in listed if name and (file := path.parent / name).is_file()))
    if vendor == "dicom" and (own := dicom_instance(path)) is not None:
        beside = filter(None, map(dicom_instance, sorted(path.parent.iterdir())))
        volumes = [one for one in beside if one.series == own.series and one.kind == "VOLUME"]
        return tuple(one.path for one in sorted(volumes, key=lambda one: one.uid)) or (path,)
    return (path,)


# --- DICOM ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DicomInstance:
    """One file of a DICOM slide."""

    path: Path
    series: str
    """Files of one series are one slide."""
    kind: str
    """VOLUME, LABEL, OVERVIEW or THUMBNAIL."""
    uid: str
    pixels: int
    """Of the whole level that the file is (a part) of."""


def dicom_instance(path: Path) -> DicomInstance | None:
    """Read the header of a DICOM file; None for another file, or one that cannot be read."""
    try:
        found = path.stat()
        return _dicom_instance(path, found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None
    except OSError:
        return None


@lru_cache(maxsize=4096)
def _dicom_instance(path: Path, size: int, changed: int) -> DicomInstance | None:
    with path.open("rb") as file:
        if file.read(132)[128:] != b"DICM":
            return None
        import pydicom.filereader
        from pydicom.errors import InvalidDicomError

        file.seek(0)
        try:  # up to the size of the whole picture; tables of frames and the pixels come after it
            head = pydicom.filereader.read_partial(file, lambda tag, *_: tag > 0x00480007)
            kinds = [*head.get("ImageType", []), "", "", ""]
            across, down = head.get("TotalPixelMatrixColumns", 0), head.get("TotalPixelMatrixRows", 0)
            return DicomInstance(path, str(head.SeriesInstanceUID), kinds[2], str(head.SOPInstanceUID), across * down)
        except (InvalidDicomError, AttributeError, ValueError, TypeError, KeyError, EOFError, NotImplementedError):
            return None


_PIXELS, _ITEM = b"\xe0\x7f\x10\x00O", b"\xfe\xff\x00\xe0"  # tags of the pixels and of each item in them


def check_dicom(path: Path) -> None:
    """Check that the frames of a DICOM series lie in its files; OpenSlide follows a damaged offset out of memory.

    Raises
    ------
    BadInput
    """
    for file in files_of_slide(path, "dicom"):
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            start = content.find(_PIXELS) + 12  # tag, kind and length
            if start < 12 or content[start : start + 4] != _ITEM:
                continue  # not in items, or not found: OpenSlide refuses what it cannot read
            length = int.from_bytes(content[start + 4 : start + 8], "little")
            first = start + 8 + length
            damaged = length % 4 != 0 or first > len(content)
            if length and not damaged:
                offsets = np.frombuffer(content[start + 8 : first], "<u4").astype(np.int64)
                rising = offsets[0] == 0 and (np.diff(offsets) > 0).all()
                damaged = not rising or offsets[-1] + 8 > len(content) - first
            if damaged:
                raise BadInput(file, "a DICOM slide", "its table of frames is damaged; copy or export it again")


def one_file_a_slide(paths: Sequence[Path]) -> list[Path]:
    """Keep one file of each slide: of a DICOM series that of its largest level. A label by itself is no slide.

    Parameters
    ----------
    paths : sequence of Path
        What is no DICOM file is kept, as is a DICOM file that cannot be read.
    """
    instances = {path: dicom_instance(path) if path.suffix.lower() == ".dcm" else None for path in paths}
    largest: dict[tuple[Path, str], DicomInstance] = {}
    for one in filter(None, instances.values()):
        key = (one.path.parent, one.series)
        if one.kind == "VOLUME" and (key not in largest or one.pixels > largest[key].pixels):
            largest[key] = one
    kept = {one.path for one in largest.values()}
    return [path for path, one in instances.items() if one is None or path in kept]


# --- fingerprint ---------------------------------------------------------------------------------------------------


def file_fingerprint(files: Iterable[Path]) -> str:
    """Hash of the content of files, in their order, independent of their places and names.

    A file of at most 256 MiB is hashed whole. Of a larger one the size, the first and last 8 MiB and 64 evenly
    spaced blocks of 256 KiB are hashed: half a second instead of minutes. Slides are written once, and pyramids change
    throughout when they are written again, so a real change is found; a few bytes patched by hand in the middle of a
    large file are not.
    """
    return fingerprint_stream(part for file in files if file.is_file() for part in _parts_to_hash(file))


def _parts_to_hash(path: Path) -> Iterator[object]:
    size = path.stat().st_size
    yield size
    with path.open("rb") as file:
        if size <= WHOLE_BYTES:
            while block := file.read(END_BYTES):
                yield block
            return
        yield file.read(END_BYTES)
        stride = (size - 2 * END_BYTES) // SAMPLES
        for number in range(SAMPLES):
            file.seek(END_BYTES + number * stride)
            yield file.read(SAMPLE_BYTES)
        file.seek(size - END_BYTES)
        yield file.read(END_BYTES)
