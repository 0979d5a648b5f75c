"""Extract image features of locations on a slide with a frozen encoder: one loop for training, bank and prediction.

Without scales a location has the encoder's own tokens of one patch. With scales it has, for scale s,::

    v_is = mean over D4 augmentations and over the encoder's tokens of the patch of side s around location i

and `features.tokens` makes of them what the network sees (neighbourhood means, standardisation within the section).
No expression takes part. Features are cached by slide, locations, encoder and precision, one entry a chunk of
locations, so that a killed run continues behind its last chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch

from cmrcnet.config import Config
from cmrcnet.features import resumable
from cmrcnet.features.device import (
    Precision,
    choose_batch,
    choose_device,
    choose_precision,
    map_ahead,
    mixed,
    reading_threads,
    split_on_memory_error,
)
from cmrcnet.features.tokens import SectionTokens
from cmrcnet.models.image_encoder import mean_token
from cmrcnet.progress import Meter, metered
from cmrcnet.slides.patches import CROP_FORMAT, crop_patches, crop_scales, share_regions
from cmrcnet.slides.slide import PatchScale, Slide, known_scale
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

LARGEST = float(np.finfo(np.float16).max)
STATISTICS, PERTURBED = -1, -2
"""Layer numbers, beside those of the scales: the image statistics of each location, and those of a few locations under
each perturbation (`uncertainty.ood`)."""
_STATISTICS_FORMAT = 1  # counts up when the same patches give other statistics


@dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """What is extracted at each location.

    Examples
    --------
    >>> from cmrcnet.features.extract import FeatureSpec
    >>> spec = FeatureSpec(scales_um=(112.0, 350.0), neighbourhood_um=150.0)
    >>> [scale.mpp for scale in spec.scales]
    [0.5, 1.5625]
    """

    patch: PatchScale = field(default_factory=PatchScale)
    """Size of a patch; with `scales_um` only its pixel size counts."""
    scales_um: tuple[float, ...] = ()
    """Sides of square patches around a location, each resized to the patch's pixel size; each becomes one token.
    Empty: the encoder's own tokens of one patch."""
    augmentations: int = 1
    """Test-time augmentation: of the eight symmetries of a square (D4), how many are encoded and averaged, the four
    rotations first. Scales only."""
    neighbourhood_um: float = 0.0
    """Standard deviation of a Gaussian mean over the section's other locations, one more token a scale; 0: none."""
    standardize: Literal["training", "section"] = "training"
    """section: each feature gets mean 0 and deviation 1 over the locations of its section."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    precision: str = "auto"
    """auto (bf16 or fp16 on a GPU, float32 elsewhere), float32, bf16 or fp16."""

    @classmethod
    def of(cls, config: Config) -> FeatureSpec:
        """From a config's `features` and `patch`, and device and precision of its `train`."""
        features = config.features
        return cls(
            patch=config.patch,
            scales_um=tuple(features.scales_um),
            augmentations=features.augmentations,
            neighbourhood_um=features.neighbourhood_um,
            standardize=features.standardize,
            device=config.train.device,
            precision=config.train.precision,
        )

    @property
    def scales(self) -> list[PatchScale]:
        """What is cut around a location: a patch a scale, or the one plain patch."""
        return [self.patch.showing(side) for side in self.scales_um] or [self.patch]

    def token_count(self, encoder: ImageEncoder) -> int:
        """Tokens of a location."""
        if not self.scales_um:
            return encoder.n_tokens
        return len(self.scales_um) * (2 if self.neighbourhood_um > 0 else 1)


class FeatureChunk(NamedTuple):
    """Features of some locations: float16 (locations, tokens, dim), or float32 (locations, dim) of one scale.

    `layer` is the index of the scale; or `STATISTICS` with image statistics (locations, 9) float32; or `PERTURBED` with
    statistics (picked locations, 1 + perturbations, 9) float32.
    """

    rows: slice
    layer: int
    values: np.ndarray


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
    found: dict[int, list[np.ndarray]] = {layer: [] for layer in layers}

    def chunks(*scales: int) -> Iterator[FeatureChunk]:
        for chunk in extract_chunks(encoder, slide, centres, spec, layers=(*scales, *layers), cache=cache, batch=batch):
            if chunk.layer in found:
                found[chunk.layer].append(chunk.values)
            else:
                yield chunk

    tokens = _section_tokens(encoder, slide, centres, spec, chunks, cache)
    none = {layer: np.empty(*_shape(encoder, spec, 0, layer)) for layer in layers}
    return tokens, {layer: np.concatenate([none[layer], *values]) for layer, values in found.items()}


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
        scales = np.empty((len(centres), len(spec.scales_um), encoder.dim), np.float32)
        for rows, layer, values in chunks(*range(len(spec.scales_um))):
            scales[rows, layer] = values
        return SectionTokens(scales, centres * known_scale(slide), spec).take(slice(0, len(centres)))

    shape = (len(centres), encoder.n_tokens, encoder.dim)
    if cache is None:
        tokens = np.empty(shape, np.float16)
        for rows, _, values in chunks(0):
            tokens[rows] = values
        return tokens
    made_by = _made_by(encoder, spec)
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
    layers: tuple[int, ...] | None = None,
    done: Callable[[slice, int], bool] | None = None,
    cache: TokenCache | None = None,
    batch: int | Literal["auto"] = "auto",
) -> Iterator[FeatureChunk]:
    """Extract features chunk by chunk, where those of a whole slide are too many for memory; parameters as `extract`.

    All layers of some 256 locations come before the next locations, so that a slide is read from top to bottom when
    its locations are in that order. Threads read the patches of the next chunk while one is encoded.

    Parameters
    ----------
    layers : tuple of int, optional
        Indices of `spec.scales` and, for image statistics, `STATISTICS` and `PERTURBED`; all scales when left out.
    done : callable, optional
        Whether a layer of these locations is stored already, so that it is left out.
    """
    centres = np.asarray(centre_px, np.float64).reshape(-1, 2)
    known_scale(slide)
    layers = tuple(range(len(spec.scales))) if layers is None else layers
    run = _Run(encoder, slide, spec, batch)
    picked = evenly(len(centres), PERTURBED_LOCATIONS)
    made_by = "" if cache is None else _made_by(encoder, spec)
    whole = None
    if cache is not None and not spec.scales_um and 0 in layers:
        name = _layer_name(slide, centres, spec, 0, made_by)
        whole = cache.get("tokens", name, (len(centres), encoder.n_tokens, encoder.dim), np.float16)

    def jobs() -> Iterator[_Job]:
        for rows in resumable.chunk_slices(len(centres)):
            missing = []
            inside = picked[(picked >= rows.start) & (picked < rows.stop)]
            for layer in layers:
                name, known = "", None
                if layer == PERTURBED and len(inside) == 0:
                    continue
                if done is not None and done(rows, layer):
                    meter.skip(rows.stop - rows.start)
                    continue
                if layer == 0 and whole is not None:
                    known = whole[rows]
                elif cache is not None:
                    at = centres[inside] if layer == PERTURBED else centres[rows]
                    name = _layer_name(slide, at, spec, layer, made_by)
                    shape, dtype = _shape(encoder, spec, len(at), layer)
                    known = cache.get("tokens", name, shape, dtype)
                if known is None:
                    missing.append((layer, name))
                else:
                    yield _Job(rows, inside, [(layer, name)], known)
            yield from (_Job(rows, inside, together, None) for together in run.grouped(missing))

    def cut(job: _Job) -> tuple[_Job, list[list[np.ndarray]]]:
        if job.known is not None:
            return job, []
        return job, run.cut(centres[job.rows], job.picked - job.rows.start, [layer for layer, _ in job.layers])

    total = sum(len(picked) if layer == PERTURBED else len(centres) for layer in layers)
    sides = ", ".join(f"{run.scales[layer].side_um:g}" for layer in layers if layer >= 0)
    what = f"encode {slide.name}, {sides} um" if sides else f"measure {slide.name}"
    with metered(what, total, "patches") as meter:
        for job, patches in map_ahead(cut, jobs(), workers=reading_threads(run.device.type)):
            if job.known is not None:
                meter.skip(len(job.known))
                yield FeatureChunk(job.rows, job.layers[0][0], job.known)
            for (layer, name), pixels in zip(job.layers, patches, strict=False):
                values = run.values(pixels, layer, meter)
                if cache is not None:
                    values = cache.put("tokens", name, values.shape, values.dtype.type, [values])
                yield FeatureChunk(job.rows, layer, values)


class _Job(NamedTuple):
    """Layers of one chunk whose patches are cut together, each with its cache entry; or one layer that is known."""

    rows: slice
    picked: np.ndarray
    layers: list[tuple[int, str]]
    known: np.ndarray | None


class _Run:
    """An encoder on its device, for one slide and one spec."""

    def __init__(self, encoder: ImageEncoder, slide: Slide, spec: FeatureSpec, batch: int | Literal["auto"]) -> None:
        self.encoder, self.slide, self.spec, self.scales = encoder, slide, spec, spec.scales
        self.device = choose_device(spec.device)
        self.precision: Precision = choose_precision(spec.precision, self.device)
        self.batch = choose_batch(batch, self.device)

    def grouped(self, missing: list[tuple[int, str]]) -> list[list[tuple[int, str]]]:
        """Each scale by itself, and image statistics with a scale that is cut from the same regions."""
        groups = [[each] for each in missing if each[0] >= 0]
        statistics = [each for each in missing if each[0] < 0]
        sharing = [g for g in groups if share_regions(self.slide, self.scales[g[0][0]], STATISTICS_SCALE)]
        if statistics and sharing:
            max(sharing, key=lambda g: self.scales[g[0][0]].side_um).extend(statistics)
        elif statistics:
            groups.append(statistics)
        return groups

    def cut(self, centres: np.ndarray, picked: np.ndarray, layers: list[int]) -> list[list[np.ndarray]]:
        """The patches of some layers, a list of scales each; those that are perturbed at the picked locations only."""
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
        self.encoder.to(self.device)
        training = self.encoder.training
        self.encoder.eval()
        forward: Callable[[torch.Tensor], torch.Tensor] = self.encoder
        if self.spec.scales_um:
            forward = partial(mean_token, self.encoder, augmentations=self.spec.augmentations)
        found = []
        try:
            for start in range(0, len(patches), self.batch):
                some = patches[start : start + self.batch]
                with torch.inference_mode(), mixed(self.precision, self.device):
                    values = split_on_memory_error(forward, self.encoder.prepare(some))
                if not self.spec.scales_um:
                    values = values.float().clamp(-LARGEST, LARGEST).half()
                found.append(values.cpu().numpy())
                meter.advance(len(some))
        finally:
            self.encoder.train(training)
        return np.concatenate(found)


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
    return (count, encoder.n_tokens, encoder.dim), np.float16


def _made_by(encoder: ImageEncoder, spec: FeatureSpec) -> str:
    """Name of what turns patches into features."""
    precision = choose_precision(spec.precision, choose_device(spec.device))
    if spec.scales_um:
        return fingerprint("view", encoder.fingerprint(), precision, spec.augmentations)
    return fingerprint(encoder.fingerprint(), precision)


def _layer_name(slide: Slide, centres: np.ndarray, spec: FeatureSpec, layer: int, made_by: str) -> str:
    """Name of the cache entry of a layer at some locations."""
    if layer in (STATISTICS, PERTURBED):
        kind = "statistics" if layer == STATISTICS else "perturbed"
        return fingerprint(kind, _STATISTICS_FORMAT, location_key(slide, centres, STATISTICS_SCALE))
    return fingerprint(location_key(slide, centres, spec.scales[layer]), made_by)
