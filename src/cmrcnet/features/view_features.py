"""One vector a view: the mean of a frozen encoder's tokens over the patch and over ways to turn it, kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch

from cmrcnet.features.batch_size import choose_batch, in_memory_of_the_device
from cmrcnet.features.device import Precision, choose_device, choose_precision, mixed
from cmrcnet.features.parts import part_slices
from cmrcnet.features.patch_names import place_name
from cmrcnet.features.read_ahead import map_ahead, reading_threads
from cmrcnet.progress import metered
from cmrcnet.slides.patches import crop_patches
from cmrcnet.slides.slide import PatchScale, Slide
from cmrcnet.storage.hashing import fingerprint

if TYPE_CHECKING:
    from cmrcnet.models.image_encoder import ImageEncoder
    from cmrcnet.storage.cache import TokenCache

WAYS = 8


class _Job(NamedTuple):
    """One view of one part, and its features where they are known already."""

    rows: slice
    view: int
    name: str
    known: np.ndarray | None


def view_features(
    encoder: ImageEncoder,
    slide: Slide,
    centre_px: np.ndarray,
    scale: PatchScale,
    *,
    orientations: int = 1,
    cache: TokenCache | None = None,
    batch: int | Literal["auto"] = "auto",
    device: str = "auto",
    precision: str = "auto",
) -> np.ndarray:
    """Mean token of the patch around each centre: `view_parts` of one view, put together.

    Returns
    -------
    numpy.ndarray, shape (locations, dim), float32
    """
    centres = np.asarray(centre_px, np.float64).reshape(-1, 2)
    found = np.empty((len(centres), encoder.dim), np.float32)
    for rows, _, values in view_parts(
        encoder,
        slide,
        centres,
        [scale],
        orientations=orientations,
        cache=cache,
        batch=batch,
        device=device,
        precision=precision,
    ):
        found[rows] = values
    return found


def view_parts(
    encoder: ImageEncoder,
    slide: Slide,
    centre_px: np.ndarray,
    scales: Sequence[PatchScale],
    *,
    orientations: int = 1,
    done: Callable[[slice, int], bool] | None = None,
    cache: TokenCache | None = None,
    batch: int | Literal["auto"] = "auto",
    device: str = "auto",
    precision: str = "auto",
) -> Iterator[tuple[slice, int, np.ndarray]]:
    """Mean token of the patch around each centre, averaged over some of the eight ways to turn and mirror it.

    Some 256 locations at a time, every view of them before the next locations: a slide is read from its top to its
    bottom
    when its locations are in that order. The patches of the next part are read by threads while one is encoded.

    Parameters
    ----------
    encoder : ImageEncoder
        Used in evaluation mode, without gradients; left on the device.
    slide : Slide
    centre_px : array, shape (locations, 2)
        x, y in level-0 pixels.
    scales : sequence of PatchScale
        What the patch of each view shows.
    orientations : int
        1 to 8: the four rotations first, then their mirror images.
    done : callable, optional
        Whether these locations of this view are kept already, and passed over.
    cache : TokenCache, optional
        Kept there by place, encoder and precision, 256 locations at a time.
    batch : int or "auto"
        Patches a forward pass; auto takes 32 on a CPU, and on a GPU 256 or what fits. It changes nothing but rounding.
    device, precision : str
        As `encode_patches`.

    Yields
    ------
    rows : slice
        Of `centre_px`.
    view : int
        Of `scales`.
    features : numpy.ndarray, shape (locations, dim), float32

    Raises
    ------
    ScaleError, NoSpace, Unwritable
    """
    centres = np.asarray(centre_px, np.float64).reshape(-1, 2)
    where = choose_device(device)
    how = choose_precision(precision, where)
    made_by = fingerprint("view", encoder.fingerprint(), how, orientations)

    def jobs() -> Iterator[_Job]:
        for rows in part_slices(len(centres)):
            for view, scale in enumerate(scales):
                if done is not None and done(rows, view):
                    meter.skip(rows.stop - rows.start)
                    continue
                if cache is None:
                    yield _Job(rows, view, "", None)
                    continue
                name = fingerprint(place_name(slide, centres[rows], scale), made_by)
                shape = (rows.stop - rows.start, encoder.dim)
                yield _Job(rows, view, name, cache.get("tokens", name, shape, np.float32))

    def cut(job: _Job) -> tuple[_Job, np.ndarray | None]:
        if job.known is not None:
            return job, None
        return job, next(crop_patches(slide, centres[job.rows], scales[job.view], batch=len(centres)))

    sides = ", ".join(f"{scale.side_um:g}" for scale in scales)
    with metered(f"encode {slide.name}, {sides} um", len(centres) * len(scales), "patches") as meter:
        for job, patches in map_ahead(cut, jobs(), workers=reading_threads(where.type)):
            values = job.known
            count = meter.skip if patches is None else meter.advance
            if patches is not None:
                values = _encode(encoder, patches, orientations, choose_batch(batch, where), where, how)
                if cache is not None:
                    cache.put("tokens", job.name, values.shape, np.float32, [values])
            yield job.rows, job.view, values
            count(len(values))


def oriented(patches: torch.Tensor, way: int) -> torch.Tensor:
    """The patches (batch, 3, side, side), turned by `way` quarter turns; from 4 on also mirrored.

    Parameters
    ----------
    patches : torch.Tensor
    way : int
        0 to 7.
    """
    turned = torch.rot90(patches, way % 4, (2, 3))
    return turned.flip(3) if way >= 4 else turned


def _encode(
    encoder: ImageEncoder,
    patches: np.ndarray,
    orientations: int,
    batch: int,
    device: torch.device,
    precision: Precision,
) -> np.ndarray:
    """Features (patches, dim) float32 of patches (patches, px, px, 3) uint8."""
    encoder.to(device)
    training = encoder.training
    encoder.eval()

    def forward(upright: torch.Tensor) -> torch.Tensor:
        total = sum(encoder(oriented(upright, way).contiguous()).float().mean(dim=1) for way in range(orientations))
        return total / orientations

    parts = []
    try:
        for start in range(0, len(patches), batch):
            with torch.inference_mode(), mixed(precision, device):
                upright = encoder.prepare(patches[start : start + batch])
                parts.append(in_memory_of_the_device(forward, upright).cpu().numpy())
    finally:
        encoder.train(training)
    return np.concatenate(parts).astype(np.float32)
