"""Encode patches with a frozen encoder: batched, in mixed precision on a GPU, kept on disk by content."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from cmrcnet.encoding.device import Precision, choose_device, choose_precision, mixed
from cmrcnet.encoding.patch_names import content_name, place_name
from cmrcnet.encoding.read_ahead import read_ahead
from cmrcnet.errors import BadOption
from cmrcnet.fingerprint import fingerprint
from cmrcnet.progress import Meter, metered
from cmrcnet.tissue.patches import crop_patches
from cmrcnet.tissue.scale import PatchScale
from cmrcnet.tissue.slide import Slide

if TYPE_CHECKING:
    from cmrcnet.encoding.token_cache import TokenCache
    from cmrcnet.model.image_encoder import ImageEncoder

PART = 256
"""Patches that are named, and kept, together: what a killed run has to do again at most."""

LARGEST = float(np.finfo(np.float16).max)


def encode_patches(
    encoder: ImageEncoder,
    slide: Slide,
    centre_px: np.ndarray,
    scale: PatchScale,
    *,
    cache: TokenCache | None = None,
    batch: int = 64,
    device: str = "auto",
    precision: str = "auto",
) -> np.ndarray:
    """Turn the patches around each centre into tokens.

    With a `cache`, tokens are named by the bytes of their patches, the encoder's fingerprint and the precision. When
    the same places of the same slide were encoded before, nothing is cut and nothing encoded. A run that was killed
    goes on behind the last 256 patches that it finished.

    Parameters
    ----------
    encoder : ImageEncoder
        Used in evaluation mode, without gradients; left on the device.
    slide : Slide
    centre_px : array, shape (patches, 2)
        x, y in level-0 pixels.
    scale : PatchScale
    cache : TokenCache, optional
        Without one, the tokens are held in memory.
    batch : int
        Patches a forward pass. It changes no token but for rounding.
    device : str
        auto, cpu, cuda, cuda:1, mps.
    precision : str
        auto (bf16 or fp16 on a GPU, float32 on a CPU), float32, bf16, fp16.

    Returns
    -------
    numpy.ndarray, shape (patches, tokens, dim), float16
        Mapped from disk, read-only, when cached. Beyond +-65,504 values are cut off.

    Raises
    ------
    UnknownScale
    DiskFull
        There is no room for the cache. Training must not hold all tokens in memory, so this does not go on without.
    Unwritable
        The cache's folder; set CMRCNET_CACHE to another.
    """
    if batch < 1:
        raise BadOption("batch", batch, want="1 patch or more")
    centres = np.asarray(centre_px, np.float64).reshape(-1, 2)
    where = choose_device(device)
    work = _Work(encoder, where, choose_precision(precision, where), batch)
    shape = (len(centres), encoder.n_tokens, encoder.dim)
    if cache is None:
        return _into_memory(work, slide, centres, scale, shape)

    place = place_name(slide, centres, scale)
    made_by = fingerprint(encoder.fingerprint(), work.precision)
    patches = cache.recall(place)
    if patches is not None:
        found = cache.get("tokens", fingerprint(patches, made_by), shape, np.float16)
        if found is not None:
            return found
    return _into_cache(work, slide, centres, scale, shape, cache, place, made_by)


def _into_memory(
    work: _Work, slide: Slide, centres: np.ndarray, scale: PatchScale, shape: tuple[int, int, int]
) -> np.ndarray:
    tokens = np.empty(shape, np.float16)
    done = 0
    with metered(f"encode {slide.name}", len(centres), "patches") as meter:
        for block in read_ahead(crop_patches(slide, centres, scale, batch=work.batch)):
            tokens[done : done + len(block)] = work.encode(block, meter)
            done += len(block)
    return tokens


def _into_cache(
    work: _Work,
    slide: Slide,
    centres: np.ndarray,
    scale: PatchScale,
    shape: tuple[int, int, int],
    cache: TokenCache,
    place: str,
    made_by: str,
) -> np.ndarray:
    """Encode part by part, each kept as soon as it is done; then join the parts to one entry."""
    digests: list[str] = []
    parts: list[tuple[str, np.ndarray]] = []
    with metered(f"encode {slide.name}", len(centres), "patches") as meter:
        for block in read_ahead(crop_patches(slide, centres, scale, batch=PART), depth=1):
            digests.append(fingerprint(block))
            name = fingerprint(digests[-1], made_by)
            wanted = (len(block), *shape[1:])
            known = cache.get("parts", name, wanted, np.float16)
            if known is None and len(centres) <= PART:  # one part is the whole: no need to write it twice
                known = cache.get("tokens", fingerprint(content_name(digests), made_by), shape, np.float16)
                known = work.encode(block, meter) if known is None else known
            elif known is not None:
                meter.advance(len(block))
            else:
                known = cache.put("parts", name, wanted, np.float16, [work.encode(block, meter)])
            parts.append((name, known))
    patches = content_name(digests)
    name = fingerprint(patches, made_by)
    tokens = cache.get("tokens", name, shape, np.float16)  # the same patches, cut at another place or time
    if tokens is None:
        tokens = cache.put("tokens", name, shape, np.float16, (part for _, part in parts))
    cache.remember(place, patches)
    for part, _ in parts:
        cache.drop("parts", part)
    return tokens


class _Work:
    """An encoder on its device, in its precision."""

    def __init__(self, encoder: ImageEncoder, device: torch.device, precision: Precision, batch: int) -> None:
        self.encoder, self.device, self.precision, self.batch = encoder, device, precision, batch

    def encode(self, patches: np.ndarray, meter: Meter) -> np.ndarray:
        """Tokens (patches, tokens, dim) float16 of patches (patches, px, px, 3) uint8."""
        self.encoder.to(self.device)
        training = self.encoder.training
        self.encoder.eval()
        try:
            return np.concatenate(list(self._batches(patches, meter)))
        finally:
            self.encoder.train(training)

    def _batches(self, patches: np.ndarray, meter: Meter) -> Iterator[np.ndarray]:
        for start in range(0, len(patches), self.batch):
            some = patches[start : start + self.batch]
            with torch.inference_mode(), mixed(self.precision, self.device):
                tokens = self.encoder(self.encoder.prepare(some))
            yield tokens.float().clamp(-LARGEST, LARGEST).half().cpu().numpy()
            meter.advance(len(some))
