"""One vector a view: the mean of a frozen encoder's tokens over the patch and over ways to turn it, kept on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from cmrcnet.encoding.device import choose_device, choose_precision, mixed
from cmrcnet.encoding.patch_names import place_name
from cmrcnet.encoding.read_ahead import read_ahead
from cmrcnet.fingerprint import fingerprint
from cmrcnet.progress import metered
from cmrcnet.tissue.patches import crop_patches
from cmrcnet.tissue.scale import PatchScale
from cmrcnet.tissue.slide import Slide

if TYPE_CHECKING:
    from cmrcnet.encoding.token_cache import TokenCache
    from cmrcnet.model.image_encoder import ImageEncoder

WAYS = 8
PART = 256
"""Places that are encoded, and kept, together: what a killed run has to do again at most."""


def view_features(
    encoder: ImageEncoder,
    slide: Slide,
    centre_px: np.ndarray,
    scale: PatchScale,
    *,
    orientations: int = 1,
    cache: TokenCache | None = None,
    batch: int = 32,
    device: str = "auto",
    precision: str = "auto",
) -> np.ndarray:
    """Mean token of the patch around each centre, averaged over some of the eight ways to turn and mirror it.

    Parameters
    ----------
    encoder : ImageEncoder
        Used in evaluation mode, without gradients; left on the device.
    slide : Slide
    centre_px : array, shape (places, 2)
        x, y in level-0 pixels.
    scale : PatchScale
        What the patch shows.
    orientations : int
        1 to 8: the four rotations first, then their mirror images.
    cache : TokenCache, optional
        Kept there by place, encoder and precision, 256 places at a time.
    batch : int
        Patches a forward pass.
    device, precision : str
        As `encode_patches`.

    Returns
    -------
    numpy.ndarray, shape (places, dim), float32

    Raises
    ------
    UnknownScale, DiskFull, Unwritable
    """
    centres = np.asarray(centre_px, np.float64).reshape(-1, 2)
    where = choose_device(device)
    how = choose_precision(precision, where)
    made_by = fingerprint("view", encoder.fingerprint(), how, orientations)
    found = np.empty((len(centres), encoder.dim), np.float32)
    label = f"encode {slide.name}, {scale.side_um:g} um"
    with metered(label, len(centres), "spots") as meter:
        for start in range(0, len(centres), PART):
            part = centres[start : start + PART]
            shape = (len(part), encoder.dim)
            name = fingerprint(place_name(slide, part, scale), made_by) if cache is not None else ""
            values = cache.get("tokens", name, shape, np.float32) if cache is not None else None
            if values is None:
                values = _encode(encoder, slide, part, scale, orientations, batch, where, how)
                if cache is not None:
                    cache.put("tokens", name, shape, np.float32, [values])
            found[start : start + PART] = values
            meter.advance(len(part))
    return found


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
    slide: Slide,
    centres: np.ndarray,
    scale: PatchScale,
    orientations: int,
    batch: int,
    device: torch.device,
    precision: str,
) -> np.ndarray:
    encoder.to(device)
    training = encoder.training
    encoder.eval()
    parts = []
    try:
        for block in read_ahead(crop_patches(slide, centres, scale, batch=batch)):
            with torch.inference_mode(), mixed(precision, device):
                upright = encoder.prepare(block)
                total = sum(
                    encoder(oriented(upright, way).contiguous()).float().mean(dim=1) for way in range(orientations)
                )
            parts.append((total / orientations).cpu().numpy())
    finally:
        encoder.train(training)
    return np.concatenate(parts).astype(np.float32)
