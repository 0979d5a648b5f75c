"""The image tokens of each spot, as a recipe wants them: one patch's own, or views of several sizes and surroundings.

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

from cmrcnet.encoding.encode import encode_patches
from cmrcnet.encoding.view_features import view_features
from cmrcnet.recipe import FeaturesConfig, Recipe
from cmrcnet.tissue.slide import Slide, known_scale

if TYPE_CHECKING:
    from cmrcnet.encoding.token_cache import TokenCache
    from cmrcnet.model.image_encoder import ImageEncoder

REACH = 3.0
"""Standard deviations beyond which a neighbour no longer counts."""

_NO_SPREAD = 1e-6


def spot_tokens(
    encoder: ImageEncoder,
    slide: Slide,
    centre_px: np.ndarray,
    recipe: Recipe,
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
    recipe : Recipe
        Its `features`, `patch`, and device and precision of `train`.
    cache : TokenCache, optional

    Returns
    -------
    numpy.ndarray, shape (spots, tokens, dim)
        float16, mapped from disk, for a patch's own tokens; float32 for views.

    Raises
    ------
    UnknownScale, DiskFull, Unwritable
    """
    config, run = recipe.features, recipe.train
    if not config.views_um:
        return encode_patches(
            encoder, slide, centre_px, recipe.patch, cache=cache, device=run.device, precision=run.precision
        )
    centres = np.asarray(centre_px, np.float64).reshape(-1, 2)
    views = [
        view_features(
            encoder,
            slide,
            centres,
            recipe.patch.showing(side),
            orientations=config.orientations,
            cache=cache,
            device=run.device,
            precision=run.precision,
        )
        for side in config.views_um
    ]
    tokens = np.stack(views, axis=1)
    if config.neighbourhood_um > 0:
        around = gaussian_means(tokens, centres * known_scale(slide), config.neighbourhood_um)
        tokens = np.concatenate([tokens, around], axis=1)
    return standardized(tokens) if config.standardize == "section" else tokens


def token_count(encoder: ImageEncoder, config: FeaturesConfig) -> int:
    """Tokens of a spot."""
    if not config.views_um:
        return encoder.n_tokens
    return len(config.views_um) * (2 if config.neighbourhood_um > 0 else 1)


def gaussian_means(tokens: np.ndarray, place_um: np.ndarray, deviation_um: float) -> np.ndarray:
    """Gaussian means of the spots' tokens over their section, the spot itself included.

    Parameters
    ----------
    tokens : array, shape (spots, ...)
    place_um : array, shape (spots, 2)
    deviation_um : float
        Standard deviation; spots beyond three of them do not count, so that memory grows with the spots only.

    Returns
    -------
    numpy.ndarray, float32
        As `tokens`.
    """
    from scipy import sparse
    from scipy.spatial import cKDTree

    if len(tokens) == 0:
        return tokens.astype(np.float32)
    tree = cKDTree(place_um)
    near = tree.sparse_distance_matrix(tree, REACH * deviation_um, output_type="coo_matrix")
    rows = np.concatenate([near.row, np.arange(len(tokens))])
    columns = np.concatenate([near.col, np.arange(len(tokens))])
    distance = np.concatenate([near.data, np.zeros(len(tokens))])
    itself = near.row == near.col  # some versions list a spot as its own neighbour, others do not
    kept = np.concatenate([~itself, np.ones(len(tokens), bool)])
    weights = np.exp(-(distance[kept] ** 2) / (2 * deviation_um**2))
    matrix = sparse.csr_matrix((weights, (rows[kept], columns[kept])), shape=(len(tokens),) * 2)
    matrix.sort_indices()
    flat = tokens.reshape(len(tokens), -1)
    means = (matrix @ flat) / np.asarray(matrix.sum(axis=1))
    return np.asarray(means, np.float32).reshape(tokens.shape)


def standardized(tokens: np.ndarray) -> np.ndarray:
    """Each feature shifted and scaled to mean 0 and deviation 1 over the spots; one that does not vary becomes 0."""
    if len(tokens) == 0:
        return tokens.astype(np.float32)
    values = tokens.astype(np.float64)
    middle, deviation = values.mean(axis=0), values.std(axis=0)
    varies = deviation > _NO_SPREAD * np.maximum(np.abs(middle), 1e-3)
    return np.where(varies, (values - middle) / np.where(varies, deviation, 1.0), 0.0).astype(np.float32)
