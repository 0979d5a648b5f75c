"""The image tokens of each spot, as a config wants them: one patch's own, or views of several sizes and surroundings.

What is seen of a spot comes from the slide and from where its spots are; no expression takes part. With views the
tokens of spot i are::

    v_is  = mean over orientations and over the encoder's tokens of the view of side s around spot i
    u_is  = sum_j g_ij v_js / sum_j g_ij,   g_ij = exp(-d_ij^2 / (2 sd^2))       with `neighbourhood_um` = sd > 0

one token v a view, then one token u a view; d_ij is the distance between spots of the same section. With
``standardize: section`` each feature of each token is then shifted and scaled to mean 0 and deviation 1 over the
section's spots.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cmrcnet.config import Config, FeaturesConfig
from cmrcnet.features.encode import encode_patches
from cmrcnet.features.section_tokens import SectionTokens
from cmrcnet.features.view_features import view_parts
from cmrcnet.slides.slide import PatchScale, Slide, known_scale

if TYPE_CHECKING:
    from cmrcnet.models.image_encoder import ImageEncoder
    from cmrcnet.storage.cache import TokenCache


def spot_tokens(
    encoder: ImageEncoder,
    slide: Slide,
    centre_px: np.ndarray,
    config: Config,
    *,
    cache: TokenCache | None = None,
) -> np.ndarray:
    """The tokens of the spots of one section.

    Parameters
    ----------
    encoder : ImageEncoder
        Frozen.
    slide : Slide
    centre_px : array, shape (spots, 2)
        x, y in level-0 pixels. With a neighbourhood or section standardisation a spot's tokens depend on the others:
        give all spots of the section, or the whole grid over its tissue.
    config : Config
        Its `features`, `patch`, and device and precision of `train`.
    cache : TokenCache, optional

    Returns
    -------
    numpy.ndarray, shape (spots, tokens, dim)
        float16, mapped from disk, for a patch's own tokens; float32 for views.

    Raises
    ------
    ScaleError, NoSpace, Unwritable
    """
    features, run = config.features, config.train
    if not features.views_um:
        return encode_patches(
            encoder, slide, centre_px, config.patch, cache=cache, device=run.device, precision=run.precision
        )
    centres = np.asarray(centre_px, np.float64).reshape(-1, 2)
    views = np.empty((len(centres), len(features.views_um), encoder.dim), np.float32)
    for rows, view, values in view_parts(
        encoder,
        slide,
        centres,
        view_scales(config),
        orientations=features.orientations,
        cache=cache,
        device=run.device,
        precision=run.precision,
    ):
        views[rows, view] = values
    return SectionTokens(views, centres * known_scale(slide), features).take(slice(0, len(centres)))


def view_scales(config: Config) -> list[PatchScale]:
    """What a patch of each of the config's views shows."""
    return [config.patch.showing(side) for side in config.features.views_um]


def token_count(encoder: ImageEncoder, features: FeaturesConfig) -> int:
    """Tokens of a spot."""
    if not features.views_um:
        return encoder.n_tokens
    return len(features.views_um) * (2 if features.neighbourhood_um > 0 else 1)
