"""Extract image features of locations on a slide with a frozen encoder: one loop for training, bank and prediction.

Without scales a location has the encoder's own tokens of one patch. With scales it has, for scale s,::

    v_is = mean over D4 augmentations and over the encoder's tokens of the patch of side s around location i

or, with the method dense, the mean of the encoder's maps over that square (`features.dense`),

and `features.tokens` makes of them what the network sees (neighbourhood means, standardisation within the section).
No expression takes part. Features are cached by slide, locations, encoder, engine and precision, one entry a chunk of
locations (256, or those of a tile), so that a killed run continues behind its last chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch

from cmrcnet.features import dense, resumable
from cmrcnet.features.device import choose_batch, choose_device, map_ahead, reading_threads
from cmrcnet.features.engine import LARGEST, Engine, choose_engine, open_engine
from cmrcnet.features.spec import PERTURBED, READ, STATISTICS, FeatureChunk, FeatureSpec
from cmrcnet.features.tokens import SectionTokens, check_standardised
from cmrcnet.models.image_encoder import ROTATIONS_FIRST, d4
from cmrcnet.progress import Meter, metered
from cmrcnet.readers.patch_files import matching_patches
from cmrcnet.slides.patches import CROP_FORMAT, crop_patches, crop_scales, share_regions
from cmrcnet.slides.slide import PatchScale, Slide, given_features, known_scale
from cmrcnet.storage.hashing import fingerprint
from cmrcnet.uncertainty.ood import (
    PERTURBATIONS,
    PERTURBED_LOCATIONS,
    PERTURBED_SCALES,
    STATISTIC_NAMES,
    STATISTICS_SCALE,
    evenly,
    patch_statistics,
    perturbed_statistics,
)

if TYPE_CHECKING:
    from cmrcnet.models.image_encoder import ImageEncoder
    from cmrcnet.storage.cache import TokenCache

_STATISTICS_FORMAT = 1  # counts up when the same patches give other statistics


def extract(
    encoder: ImageEncoder,
    slide: Slide,
    centre_px: np.ndarray,
    spec: FeatureSpec,
    *,
    cache: TokenCache | None = None,
    batch: int | Literal["auto"] = "auto",
) -> np.ndarray:
    """Extract the tokens of all locations of one section.

    Parameters
    ----------
    encoder : ImageEncoder
        Frozen; used in evaluation mode, without gradients, and left on the device.
    slide : Slide
    centre_px : array, shape (locations, 2)
        x, y in level-0 pixels. With a neighbourhood or section standardisation the tokens of a location depend on
        the others: give all locations of the section, or the whole grid over its tissue.
    spec : FeatureSpec
    cache : TokenCache, optional
        Asked first, and given what is computed. Without one the tokens are held in memory.
    batch : int or "auto"
        Patches a forward pass; auto takes 32 on a CPU, and on a GPU 256 or what fits. It changes only rounding.

    Returns
    -------
    numpy.ndarray, shape (locations, tokens, dim)
        float16, beyond +-65,504 cut off and mapped from disk when cached, for the tokens of a plain patch; float32
        for scales.

    Raises
    ------
    ScaleError
        The slide has no micrometres per pixel.
    NoSpace, Unwritable
        The cache's folder; set CMRCNET_CACHE to another.

    Examples
    --------
    >>> import numpy as np
    >>> import cmrcnet as cn
    >>> slide = cn.ArraySlide(np.full((400, 400, 3), 200, np.uint8), mpp=0.5)
    >>> encoder = cn.create_image_encoder("timm:test_vit", weights="random")
    >>> spec = cn.FeatureSpec(patch=cn.PatchScale(size_px=160), scales_um=(80.0, 160.0))
    >>> cn.extract(encoder, slide, np.array([[200.0, 200.0], [210.0, 180.0]]), spec).shape
    (2, 2, 64)
    """
    return extract_with(encoder, slide, centre_px, spec, (), cache=cache, batch=batch)[0]


def extract_with(
    encoder: ImageEncoder,
    slide: Slide,
    centre_px: np.ndarray,
    spec: FeatureSpec,
    layers: tuple[int, ...],
    *,
    cache: TokenCache | None = None,
    batch: int | Literal["auto"] = "auto",
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Extract tokens as `extract` does, and `STATISTICS` or `PERTURBED` by number, from the same pixels where they fit.

    See `uncertainty.ood` for both: statistics (locations, 9) float32, and those of at most 64 locations under each
    perturbation, (picked locations, 1 + perturbations, 9) float32.
    """
    centres = np.asarray(centre_px, np.float64).reshape(-1, 2)
    spec = choose_engine(encoder, spec, cache)
    picked = evenly(len(centres), PERTURBED_LOCATIONS)
    counts = {layer: len(picked) if layer == PERTURBED else len(centres) for layer in layers}
    found = {layer: np.empty(*_shape(encoder, spec, count, layer)) for layer, count in counts.items()}

    def chunks(*scales: int) -> Iterator[FeatureChunk]:
        for chunk in extract_chunks(encoder, slide, centres, spec, layers=(*scales, *layers), cache=cache, batch=batch):
            rows, layer, values = chunk
            if layer == PERTURBED:
                found[layer][np.searchsorted(picked, _indices(rows))] = values
            elif layer in found:
                found[layer][rows] = values
            else:
                yield chunk

    return _section_tokens(encoder, slide, centres, spec, chunks, cache), found


def _section_tokens(
    encoder: ImageEncoder,
    slide: Slide,
    centres: np.ndarray,
    spec: FeatureSpec,
    chunks: Callable[..., Iterator[FeatureChunk]],
    cache: TokenCache | None,
) -> np.ndarray:
    """Tokens of all locations, from chunks of the scales that are asked for; the cache may hold them as a whole."""
    if spec.scales_um:
        check_standardised(spec, len(centres), slide.name)
        scales = np.empty((len(centres), len(spec.scales_um), encoder.dim), np.float32)
        for rows, layer, values in chunks(*range(len(spec.scales_um))):
            scales[rows, layer] = values
        return SectionTokens(scales, centres * known_scale(slide), spec).take(slice(0, len(centres)))

    shape, _ = _shape(encoder, spec, len(centres), 0)
    if cache is None:
        tokens = np.empty(shape, np.float16)
        for rows, _, values in chunks(0):
            tokens[rows] = values
        return tokens
    made_by = _made_by(encoder, spec, slide)
    whole = _layer_name(slide, centres, spec, 0, made_by)
    tokens = cache.get("tokens", whole, shape, np.float16)
    if tokens is not None:
        list(chunks())
    elif len(centres) <= resumable.CHUNK:  # the one chunk is the whole
        tokens = next((chunk.values for chunk in list(chunks(0))), np.empty(shape, np.float16))
    else:
        tokens = cache.put("tokens", whole, shape, np.float16, (chunk.values for chunk in chunks(0)))
        for rows in resumable.chunk_slices(len(centres)):
            cache.drop("tokens", _layer_name(slide, centres[rows], spec, 0, made_by))
    return tokens


def extract_chunks(
    encoder: ImageEncoder,
    slide: Slide,
    centre_px: np.ndarray,
    spec: FeatureSpec,
    *,
    sub_windows: np.ndarray | None = None,
    layers: tuple[int, ...] | None = None,
    done: Callable[[slice | np.ndarray, int], bool] | None = None,
    cache: TokenCache | None = None,
    batch: int | Literal["auto"] = "auto",
) -> Iterator[FeatureChunk]:
    """Extract features chunk by chunk, where those of a whole slide are too many for memory; parameters as `extract`.

    Patches: all layers of some 256 locations come before the next locations, so that a slide is read from top to bottom
    when its locations are in that order. Dense: all tiles of a scale come before the next scale. Threads read the
    pixels of the next chunk while one is encoded.

    Parameters
    ----------
    sub_windows : array, shape (locations,), optional
        Sub-windows along a side of each location, where the spec has them; those of whole locations when left out.
    layers : tuple of int, optional
        Indices of `spec.scales` and, for image statistics, `STATISTICS` and `PERTURBED`; all scales when left out.
    done : callable, optional
        Whether a layer of these locations (slice or indices) is stored already, so that it is left out.
    """
    centres = np.asarray(centre_px, np.float64).reshape(-1, 2)
    known_scale(slide)
    spec = choose_engine(encoder, spec, cache)
    layers = tuple(range(len(spec.scales))) if layers is None else layers
    run = dense.DenseRun(encoder, slide, spec) if spec.method == "dense" else PatchRun(encoder, slide, spec, batch)
    picked = evenly(len(centres), PERTURBED_LOCATIONS)
    made_by = "" if cache is None else _made_by(encoder, spec, slide)
    counts = None
    if spec.window_um:
        counts = np.full(len(centres), spec.sub_windows) if sub_windows is None else sub_windows
    whole = None
    if cache is not None and not spec.scales_um and 0 in layers:
        name = _layer_name(slide, centres, spec, 0, made_by)
        whole = cache.get("tokens", name, *_shape(encoder, spec, len(centres), 0))

    def jobs() -> Iterator[_Job]:
        for rows, together in run.chunks(centres, layers):
            missing = []
            here = _indices(rows)
            inside = np.intersect1d(picked, here, assume_unique=True)
            for layer in together:
                name, known = "", None
                if layer == PERTURBED and len(inside) == 0:
                    continue
                if done is not None and done(rows, layer):
                    meter.skip(len(here))
                    continue
                if layer == 0 and whole is not None:
                    known = whole[rows]
                elif cache is not None:
                    at = centres[inside] if layer == PERTURBED else centres[rows]
                    name = _layer_name(slide, at, spec, layer, made_by, None if counts is None else counts[rows])
                    shape, dtype = _shape(encoder, spec, len(at), layer)
                    known = cache.get("tokens", name, shape, dtype)
                if known is None:
                    missing.append((layer, name))
                else:
                    yield _Job(rows, inside, [(layer, name)], known)
            yield from (_Job(rows, inside, group, None) for group in run.grouped(missing))

    def cut(job: _Job) -> tuple[_Job, list]:
        if job.known is not None:
            return job, []
        at = np.searchsorted(_indices(job.rows), job.picked)
        its = None if counts is None else counts[job.rows]
        return job, run.cut(centres[job.rows], at, [layer for layer, _ in job.layers], its)

    total = sum(len(picked) if layer == PERTURBED else len(centres) for layer in layers)
    sides = ", ".join(f"{spec.scales[layer].side_um:g}" for layer in layers if layer >= 0)
    what = f"encode {slide.name}, {sides} um" if sides else f"measure {slide.name}"
    with metered(what, total, "patches" if spec.method == "patches" else "windows") as meter:
        for job, pixels in map_ahead(cut, jobs(), workers=reading_threads(choose_device(spec.device).type)):
            if job.known is not None:
                meter.skip(len(job.known))
                layer = job.layers[0][0]
                yield FeatureChunk(job.picked if layer == PERTURBED else job.rows, layer, job.known)
            for (layer, name), its in zip(job.layers, pixels, strict=False):
                values = run.values(its, layer, meter)
                if cache is not None:
                    values = cache.put("tokens", name, values.shape, values.dtype.type, [values])
                yield FeatureChunk(job.picked if layer == PERTURBED else job.rows, layer, values)


class PatchRun:
    """How the features of one slide's locations are made from patches, or read where they were made before.

    Its dense counterpart is `dense.DenseRun`; `extract_chunks` chooses.
    """

    def __init__(self, encoder: ImageEncoder, slide: Slide, spec: FeatureSpec, batch: int | Literal["auto"]) -> None:
        self.encoder, self.slide, self.spec, self.scales = encoder, slide, spec, spec.scales
        self.device = choose_device(spec.device)
        self.batch = choose_batch(batch, self.device)
        self.given = None
        if spec.engine == READ:
            self.given = matching_patches(slide, encoder.config.external, encoder.dim, self.scales[0].side_um)

    @cached_property
    def engine(self) -> Engine:
        """Opened when the first patches are encoded."""
        return open_engine(self.encoder, self.spec)

    def chunks(self, centre_px: np.ndarray, layers: tuple[int, ...]) -> Iterator[tuple[slice, tuple[int, ...]]]:
        """Locations that are taken together, and their layers."""
        yield from ((rows, layers) for rows in resumable.chunk_slices(len(centre_px)))

    def grouped(self, missing: list[tuple[int, str]]) -> list[list[tuple[int, str]]]:
        """Each scale by itself, and image statistics with a scale that is cut from the same regions."""
        groups = [[each] for each in missing if each[0] >= 0]
        statistics = [each for each in missing if each[0] < 0]
        pixels = groups if statistics and self.given is None else []
        sharing = [g for g in pixels if share_regions(self.slide, self.scales[g[0][0]], STATISTICS_SCALE)]
        if sharing:
            max(sharing, key=lambda g: self.scales[g[0][0]].side_um).extend(statistics)
        elif statistics:
            groups.append(statistics)
        return groups

    def cut(
        self, centres: np.ndarray, picked: np.ndarray, layers: list[int], counts: np.ndarray | None = None
    ) -> list[list[np.ndarray]]:
        """The patches of some layers, a list of scales each; those that are perturbed at the picked locations only.

        The features of layer 0 in place of its patches, where they are given.
        """
        if self.given is not None and layers == [0]:
            return [[self.given.features(self.given.rows_at(centres, self.slide.name))]]
        scales = [
            (STATISTICS_SCALE if layer == STATISTICS else self.scales[layer]) for layer in layers if layer != PERTURBED
        ]
        if len(layers) == 1 and scales:
            return [[next(crop_patches(self.slide, centres, scales[0], batch=len(centres)))]]
        if PERTURBED not in layers:
            return [[patches] for patches in crop_scales(self.slide, centres, scales)]
        more = [*scales, *PERTURBED_SCALES]
        here = crop_scales(self.slide, centres[picked], more)
        rest = np.setdiff1d(np.arange(len(centres)), picked)
        found = []
        for plain, there in zip(here, crop_scales(self.slide, centres[rest], scales) if scales else [], strict=False):
            patches = np.empty((len(centres), *plain.shape[1:]), np.uint8)
            patches[picked], patches[rest] = plain, there
            found.append([patches])
        return [*found, here[len(scales) :]]

    def values(self, scales: list[np.ndarray], layer: int, meter: Meter) -> np.ndarray:
        """Features or image statistics of patches (patches, px, px, 3) uint8 of one scale, or of several."""
        patches = scales[0]
        if layer == PERTURBED:
            meter.advance(len(patches))
            return perturbed_statistics(scales)
        if layer == STATISTICS:
            meter.advance(len(patches))
            return patch_statistics(patches)
        if self.given is not None:
            meter.advance(len(patches))
            return patches if self.spec.scales_um else np.clip(patches, -LARGEST, LARGEST).astype(np.float16)[:, None]
        found = []
        for start in range(0, len(patches), self.batch):
            some = patches[start : start + self.batch]
            if self.spec.scales_um:
                found.append(self.engine.mean_token(some, self.spec.augmentations_of(layer)))
            else:
                found.append(np.concatenate([self.engine.tokens(each) for each in self._turned(some)], axis=1))
            meter.advance(len(some))
        return np.concatenate(found)

    def _turned(self, patches: np.ndarray) -> Iterator[np.ndarray]:
        """The patches as they are, then by each further symmetry."""
        yield patches
        for way in ROTATIONS_FIRST[1 : self.spec.augmentations_of(0)]:
            yield d4(torch.from_numpy(patches), way, rows=1, columns=2).contiguous().numpy()


def chunk_numbers(slide: Slide, centre_px: np.ndarray, spec: FeatureSpec, layer: int) -> np.ndarray:
    """The chunk of each location in which `extract_chunks` gives a layer: (locations,), numbers from 0."""
    centres = np.asarray(centre_px, np.float64).reshape(-1, 2)
    if spec.method == "patches":
        return np.arange(len(centres)) // resumable.CHUNK
    numbers = np.empty(len(centres), np.int64)
    for number, rows in enumerate(dense.tiles_of_layer(slide, centres, spec, layer)):
        numbers[rows] = number
    return numbers


def _indices(rows: slice | np.ndarray) -> np.ndarray:
    return np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows


class _Job(NamedTuple):
    """Layers of one chunk whose pixels are read together, each with its cache entry; or one layer that is known."""

    rows: slice | np.ndarray
    picked: np.ndarray
    layers: list[tuple[int, str]]
    known: np.ndarray | None


def cached_patches(cache: TokenCache, slide: Slide, centre_px: np.ndarray, scale: PatchScale) -> np.ndarray:
    """Patches of a section, (spots, size_px, size_px, 3) uint8, cut once and mapped from disk, to train encoders on."""
    centres = np.asarray(centre_px, np.float64).reshape(-1, 2)
    shape = (len(centres), scale.size_px, scale.size_px, 3)
    name = location_key(slide, centres, scale)
    found = cache.get("patches", name, shape, np.uint8)
    if found is not None:
        return found
    with metered(f"cut {slide.name}", len(centres), "patches") as meter:

        def blocks() -> Iterator[np.ndarray]:
            for block in crop_patches(slide, centres, scale):
                yield block
                meter.advance(len(block))

        return cache.put("patches", name, shape, np.uint8, blocks())


def features_key(
    encoder: ImageEncoder,
    slide: Slide,
    centre_px: np.ndarray,
    spec: FeatureSpec,
    sub_windows: np.ndarray | None = None,
) -> str:
    """Name of all features and image statistics of some locations, by which unfinished work is recognised.

    It is made of the names of their cache entries; parameters as `extract_chunks`, the engine of the spec chosen.
    """
    centres, made_by = np.asarray(centre_px, np.float64).reshape(-1, 2), _made_by(encoder, spec, slide)
    counts = sub_windows if spec.window_um else None
    layers = (*range(len(spec.scales)), STATISTICS)
    return fingerprint([_layer_name(slide, centres, spec, layer, made_by, counts) for layer in layers])


def location_key(slide: Slide, centre_px: np.ndarray, scale: PatchScale) -> str:
    """Name of the patches at some locations (patches, 2) of a slide, known without cutting them."""
    where = slide.fingerprint(), slide.mpp, np.asarray(centre_px, np.float64)
    return fingerprint(*where, [scale.size_px, scale.mpp], CROP_FORMAT)


def _shape(encoder: ImageEncoder, spec: FeatureSpec, count: int, layer: int) -> tuple[tuple[int, ...], type]:
    """Shape and type of the values of a layer at so many locations."""
    if layer == PERTURBED:
        return (count, 1 + len(PERTURBATIONS), len(STATISTIC_NAMES)), np.float32
    if layer == STATISTICS:
        return (count, len(STATISTIC_NAMES)), np.float32
    if spec.scales_um:
        return (count, encoder.dim), np.float32
    return (count, spec.augmentations_of(0) * encoder.n_tokens, encoder.dim), np.float16


def _made_by(encoder: ImageEncoder, spec: FeatureSpec, slide: Slide) -> str:
    """Name of what turns pixels into features."""
    if spec.engine == READ:
        return fingerprint("read", encoder.fingerprint(), given_features(slide))
    how = encoder.fingerprint(), spec.engine, spec.precision
    if spec.method == "dense":
        tiling = [dense.DENSE_FORMAT, dense.TILE_PX, dense.HALO_PX, dense.BLOCK_PX, dense.ALIGN_PX]
        return fingerprint("dense", tiling, *how)
    return fingerprint("view" if spec.scales_um else "plain", *how)


def _layer_name(
    slide: Slide, centres: np.ndarray, spec: FeatureSpec, layer: int, made_by: str, counts: np.ndarray | None = None
) -> str:
    """Name of the cache entry of a layer at some locations."""
    if layer in (STATISTICS, PERTURBED):
        kind = "perturbed" if layer == PERTURBED else "statistics" if spec.method == "patches" else "dense statistics"
        return fingerprint(kind, _STATISTICS_FORMAT, location_key(slide, centres, STATISTICS_SCALE))
    divided = () if counts is None else (spec.window_um, spec.side_um, np.asarray(counts, np.int64))
    return fingerprint(
        location_key(slide, centres, spec.scales[layer]), made_by, spec.augmentations_of(layer), *divided
    )
