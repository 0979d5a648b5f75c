"""Encode patches with a frozen encoder: batched, in mixed precision on a GPU, kept on disk by content."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from cmrcnet.features import parts
from cmrcnet.features.batch_size import choose_batch, in_memory_of_the_device
from cmrcnet.features.device import Precision, choose_device, choose_precision, mixed
from cmrcnet.features.parts import part_slices
from cmrcnet.features.patch_names import content_name, place_name
from cmrcnet.features.read_ahead import map_ahead, read_ahead, reading_threads
from cmrcnet.progress import Meter, metered
from cmrcnet.slides.patches import crop_patches
from cmrcnet.slides.slide import PatchScale, Slide
from cmrcnet.storage.hashing import fingerprint

if TYPE_CHECKING:
    from cmrcnet.models.image_encoder import ImageEncoder
    from cmrcnet.storage.cache import TokenCache

LARGEST = float(np.finfo(np.float16).max)


def encode_patches(
    encoder: ImageEncoder,
    slide: Slide,
    centre_px: np.ndarray,
    scale: PatchScale,
    *,
    cache: TokenCache | None = None,
    batch: int | Literal["auto"] = "auto",
    device: str = "auto",
    precision: str = "auto",
) -> np.ndarray:
    """Turn the patches around each centre into tokens.

    With a `cache`, tokens are named by the bytes of their patches, the encoder's fingerprint and the precision. When
    the same locations of the same slide were encoded before, nothing is cut and nothing encoded. A run that was killed
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
    batch : int or "auto"
        Patches a forward pass; auto takes 32 on a CPU, and on a GPU 256 or what fits. It changes no token but for
        rounding.
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
    ScaleError
    NoSpace
        There is no room for the cache. Training must not hold all tokens in memory, so this does not go on without.
    Unwritable
        The cache's folder; set CMRCNET_CACHE to another.
    """
    centres = np.asarray(centre_px, np.float64).reshape(-1, 2)
    work = _Work.of(encoder, device, precision, batch)
    shape = (len(centres), encoder.n_tokens, encoder.dim)
    if cache is None:
        return _into_memory(work, slide, centres, scale, shape)

    place = place_name(slide, centres, scale)
    found = _recalled(cache, place, work.made_by, shape)
    if found is not None:
        return found
    return _into_cache(work, slide, centres, scale, shape, cache, place, work.made_by)


def encode_parts(
    encoder: ImageEncoder,
    slide: Slide,
    centre_px: np.ndarray,
    scale: PatchScale,
    *,
    done: Callable[[slice], bool] | None = None,
    cache: TokenCache | None = None,
    batch: int | Literal["auto"] = "auto",
    device: str = "auto",
    precision: str = "auto",
) -> Iterator[tuple[slice, np.ndarray]]:
    """The tokens of `encode_patches`, some 256 patches at a time, for whom all tokens of a slide are too many.

    The patches of the next part are read by threads while one is encoded.

    Parameters
    ----------
    encoder, slide, centre_px, scale, cache, batch, device, precision
        As `encode_patches`.
    done : callable, optional
        Whether what these locations give is kept already, and they are passed over.

    Yields
    ------
    rows : slice
        Of `centre_px`.
    tokens : numpy.ndarray, shape (patches, tokens, dim), float16
    """
    centres = np.asarray(centre_px, np.float64).reshape(-1, 2)
    work = _Work.of(encoder, device, precision, batch)
    each = (encoder.n_tokens, encoder.dim)
    whole = None
    if cache is not None:
        whole = _recalled(cache, place_name(slide, centres, scale), work.made_by, (len(centres), *each))

    def jobs() -> Iterator[tuple[slice, str, np.ndarray | None]]:
        for rows in part_slices(len(centres)):
            if done is not None and done(rows):
                meter.skip(rows.stop - rows.start)
            elif whole is not None:
                yield rows, "", whole[rows]
            elif cache is None:
                yield rows, "", None
            else:
                place = place_name(slide, centres[rows], scale)
                yield rows, place, _recalled(cache, place, work.made_by, (rows.stop - rows.start, *each))

    def cut(job: tuple[slice, str, np.ndarray | None]):
        patches = None if job[2] is not None else next(crop_patches(slide, centres[job[0]], scale, batch=len(centres)))
        return *job, patches

    with metered(f"encode {slide.name}", len(centres), "patches") as meter:
        for rows, place, known, patches in map_ahead(cut, jobs(), workers=reading_threads(work.device.type)):
            if patches is None:
                meter.skip(len(known))
                yield rows, known
                continue
            tokens = work.encode(patches, meter)
            if cache is not None:
                content = content_name([fingerprint(patches)])
                cache.put("tokens", fingerprint(content, work.made_by), tokens.shape, np.float16, [tokens])
                cache.remember(place, content)
            yield rows, tokens


def _recalled(cache: TokenCache, place: str, made_by: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """Tokens of locations that were encoded before, mapped; nothing is cut to find them."""
    patches = cache.recall(place)
    return None if patches is None else cache.get("tokens", fingerprint(patches, made_by), shape, np.float16)


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
    kept: list[tuple[str, np.ndarray]] = []
    with metered(f"encode {slide.name}", len(centres), "patches") as meter:
        for block in read_ahead(crop_patches(slide, centres, scale, batch=parts.PART), depth=1):
            digests.append(fingerprint(block))
            name = fingerprint(digests[-1], made_by)
            wanted = (len(block), *shape[1:])
            known = cache.get("parts", name, wanted, np.float16)
            if known is None and len(centres) <= parts.PART:  # one part is the whole: no need to write it twice
                known = cache.get("tokens", fingerprint(content_name(digests), made_by), shape, np.float16)
                known = work.encode(block, meter) if known is None else known
            elif known is not None:
                meter.advance(len(block))
            else:
                known = cache.put("parts", name, wanted, np.float16, [work.encode(block, meter)])
            kept.append((name, known))
    patches = content_name(digests)
    name = fingerprint(patches, made_by)
    tokens = cache.get("tokens", name, shape, np.float16)  # the same patches, cut at another place or time
    if tokens is None:
        tokens = cache.put("tokens", name, shape, np.float16, (part for _, part in kept))
    cache.remember(place, patches)
    for part, _ in kept:
        cache.drop("parts", part)
    return tokens


class _Work:
    """An encoder on its device, in its precision."""

    def __init__(self, encoder: ImageEncoder, device: torch.device, precision: Precision, batch: int) -> None:
        self.encoder, self.device, self.precision, self.batch = encoder, device, precision, batch

    @classmethod
    def of(cls, encoder: ImageEncoder, device: str, precision: str, batch: int | Literal["auto"]) -> _Work:
        """From what a caller may say."""
        where = choose_device(device)
        return cls(encoder, where, choose_precision(precision, where), choose_batch(batch, where))

    @cached_property
    def made_by(self) -> str:
        """Name of what makes the tokens."""
        return fingerprint(self.encoder.fingerprint(), self.precision)

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
                tokens = in_memory_of_the_device(self.encoder, self.encoder.prepare(some))
            yield tokens.float().clamp(-LARGEST, LARGEST).half().cpu().numpy()
            meter.advance(len(some))
