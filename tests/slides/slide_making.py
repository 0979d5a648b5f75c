"""Made-up tissue, and slide files of true formats written from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

OME_PIXEL_UM = 0.25


def tissue_picture(height: int = 700, width: int = 900, seed: int = 0) -> np.ndarray:
    """Smooth structure of stain colours, (height, width, 3) uint8: it survives resampling, unlike noise."""
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    stain = ndimage.gaussian_filter(rng.normal(size=(2, height, width)), (0, 6, 6))
    stain = np.clip(stain / stain.std() * 0.3 + 0.6, 0, 1.5)
    absorbed = stain[0][..., None] * (0.65, 0.9, 0.35) + stain[1][..., None] * (0.1, 0.8, 0.3)
    return np.clip(255 * np.exp(-absorbed), 0, 255).astype(np.uint8)


def halved(pixels: np.ndarray, times: int = 1) -> np.ndarray:
    """Mean of 2 x 2 pixels, `times` times, as scanners build pyramids; an odd last row or column is dropped."""
    for _ in range(times):
        rows, columns = pixels.shape[0] // 2 * 2, pixels.shape[1] // 2 * 2
        four = pixels[:rows, :columns].reshape(rows // 2, 2, columns // 2, 2, 3).astype(np.float32)
        pixels = (four.mean(axis=(1, 3)) + 0.5).astype(np.uint8)
    return pixels


def write_tiled_pyramid(path: Path, pixels: np.ndarray, levels: int = 3, **options) -> Path:
    """A tiled TIFF with its pyramid as further pages: OpenSlide opens it as generic-tiff."""
    import tifffile

    with tifffile.TiffWriter(path) as tiff:
        for level in range(levels):
            tiff.write(
                halved(pixels, level),
                tile=(128, 128),
                photometric="rgb",
                subfiletype=1 if level else 0,
                metadata=None,
                **(options if level == 0 else {k: v for k, v in options.items() if "resolution" not in k}),
            )
    return path


def write_aperio(path: Path, pixels: np.ndarray, mpp: float = 0.499, description: str | None = None, **options) -> Path:
    """As an SVS: Aperio's image description, level 0, a striped thumbnail, level 1."""
    import tifffile

    text = description or f"Aperio Image Library v12.0.15\n{pixels.shape[1]}x{pixels.shape[0]}|AppMag = 20|MPP = {mpp}"
    with tifffile.TiffWriter(path) as tiff:
        plain = {"photometric": "rgb", "metadata": None, **options}
        tiff.write(pixels, tile=(128, 128), description=text, **plain)
        tiff.write(halved(pixels, 3), rowsperstrip=16, description="Aperio thumbnail", **plain)
        tiff.write(halved(pixels, 2), tile=(128, 128), description="Aperio level", subfiletype=1, **plain)
    return path


def write_ome_pyramid(
    path: Path, pixels: np.ndarray, planar: bool = False, unit: str = "µm", size: float = OME_PIXEL_UM
) -> Path:
    """An OME-TIFF with two reduced levels in SubIFDs."""
    import tifffile

    def stored(level: int) -> np.ndarray:
        image = halved(pixels, level)
        return np.moveaxis(image, 2, 0) if planar else image

    metadata = {
        "axes": "CYX" if planar else "YXS",
        "PhysicalSizeX": size,
        "PhysicalSizeXUnit": unit,
        "PhysicalSizeY": size,
        "PhysicalSizeYUnit": unit,
    }
    colour = {"photometric": "minisblack"} if planar else {"photometric": "rgb"}
    options = dict(tile=(128, 128), compression="deflate", **colour)
    with tifffile.TiffWriter(path, ome=True) as tiff:
        tiff.write(stored(0), subifds=2, metadata=metadata, **options)
        for level in (1, 2):
            tiff.write(stored(level), subfiletype=1, **options)
    return path


def write_dicom_series(folder: Path, pixels: np.ndarray, mpp: float = 0.5, label: bool = True, seed: str = "1") -> Path:
    """A DICOM whole-slide image as a scanner writes it: a file a pyramid level, and a label picture of the series."""
    folder.mkdir(parents=True, exist_ok=True)
    for level in range(3):
        name, kind = f"level-{level}.dcm", ("ORIGINAL" if level == 0 else "DERIVED", "PRIMARY", "VOLUME", "NONE")
        _write_dicom(folder / name, halved(pixels, level), mpp * 2**level, kind, f"1.2.826.0.1.{seed}", level + 1)
    if label:
        kind = ("ORIGINAL", "PRIMARY", "LABEL", "NONE")
        _write_dicom(folder / "a-label.dcm", pixels[:100, :150], mpp, kind, f"1.2.826.0.1.{seed}", 9)
    return folder / "level-0.dcm"


def _write_dicom(path: Path, pixels: np.ndarray, mpp: float, kind: tuple[str, ...], series: str, number: int) -> None:
    import io

    from PIL import Image
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit

    height, width = pixels.shape[:2]
    side, frames = (128, 128) if kind[2] == "VOLUME" else (height, width), []
    for y in range(0, height, side[0]):
        for x in range(0, width, side[1]):
            tile = np.full((*side, 3), 255, np.uint8)
            part = pixels[y : y + side[0], x : x + side[1]]
            tile[: part.shape[0], : part.shape[1]] = part
            stream = io.BytesIO()
            Image.fromarray(tile).save(stream, "JPEG", quality=95, subsampling="4:2:2")
            frames.append(stream.getvalue())
    measures, frame_type, shared, optics, found = (Dataset() for _ in range(5))
    measures.PixelSpacing, measures.SliceThickness = [round(mpp / 1000, 10)] * 2, 0.001
    frame_type.FrameType = list(kind)
    shared.PixelMeasuresSequence = [measures]
    shared.WholeSlideMicroscopyImageFrameTypeSequence = [frame_type]
    optics.ObjectiveLensPower, optics.OpticalPathIdentifier = 20, "1"
    found.file_meta = FileMetaDataset()
    found.file_meta.MediaStorageSOPClassUID = found.SOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.6"
    found.file_meta.MediaStorageSOPInstanceUID = found.SOPInstanceUID = f"{series}.{number}"
    found.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    found.StudyInstanceUID = found.FrameOfReferenceUID = found.SeriesInstanceUID = series
    found.Modality, found.InstanceNumber, found.ImageType = "SM", number, list(kind)
    found.DimensionOrganizationType, found.NumberOfFrames = "TILED_FULL", len(frames)
    found.Rows, found.Columns = side
    found.TotalPixelMatrixColumns, found.TotalPixelMatrixRows = width, height
    found.SamplesPerPixel, found.PhotometricInterpretation, found.PlanarConfiguration = 3, "YBR_FULL_422", 0
    found.BitsAllocated, found.BitsStored, found.HighBit, found.PixelRepresentation = 8, 8, 7, 0
    found.ImagedVolumeWidth, found.ImagedVolumeHeight, found.ImagedVolumeDepth = width * mpp, height * mpp, 0.001
    found.SharedFunctionalGroupsSequence, found.OpticalPathSequence = [shared], [optics]
    found.NumberOfOpticalPaths, found.TotalPixelMatrixFocalPlanes = 1, 1
    found.PixelData = encapsulate(frames)
    found["PixelData"].is_undefined_length = True
    found.save_as(path, enforce_file_format=True)
