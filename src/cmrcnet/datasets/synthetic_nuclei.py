"""Nuclei of a made-up section: where they lie and what each looks like, stamped in one vectorised step a kind.

Sizes are typical of H&E: lymphocytes about 7 um, round and dense; tumour nuclei 9 to 15 um, oval, with clumped
chromatin and a nucleolus; fibroblasts thin spindles along the fibres.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cmrcnet.datasets.synthetic_anatomy import CELL_UM, Anatomy

_LOOKS = 32  # different nuclei of a kind and class; drawn at random for each location
_GRADES = 5
_ANGLES = 16


@dataclass(frozen=True)
class NucleusKind:
    """How one kind of nucleus lies and looks.

    Parameters
    ----------
    region : int
        Index in `REGIONS` of the tissue that holds it.
    pitch_um : float
        Side of the square that holds at most one.
    share : float
        Share of the squares that hold one, where nuclei are neither crowded nor sparse.
    length_um, width_um : float
        Half axes.
    growth : float
        How much of its size it gains from grade 0 to 1.
    darkness : float
        Haematoxylin in its middle.
    clumps : float
        Contrast of the chromatin.
    """

    region: int
    pitch_um: float
    share: float
    length_um: float
    width_um: float
    growth: float
    darkness: float
    clumps: float


KINDS = {
    "tumour": NucleusKind(0, 13.5, 0.82, 5.0, 3.9, 0.55, 1.05, 0.42),
    "lymphocyte": NucleusKind(1, 8.6, 0.80, 3.3, 3.1, 0.0, 1.55, 0.22),
    "fibroblast": NucleusKind(2, 24.0, 0.62, 8.0, 1.7, 0.0, 1.15, 0.2),
}


def stamp_nuclei(canvas: np.ndarray, anatomy: Anatomy, direction: np.ndarray, mpp: float) -> None:
    """Draw all nuclei into a map of haematoxylin.

    Parameters
    ----------
    canvas : numpy.ndarray, shape (height, width), float32
        Changed in place: each pixel keeps the larger of what it had and what the nucleus brings.
    anatomy : Anatomy
    direction : numpy.ndarray, shape (rows, columns), float32
        Angle of the fibres in radians, on the coarse grid.
    mpp : float
    """
    for name, kind in KINDS.items():
        random = anatomy.plan.random(f"nuclei {name}")
        centre_um, cell = _places(kind, anatomy, random)
        if kind.growth > 0:
            classes = np.minimum((anatomy.grade[cell] * _GRADES).astype(int), _GRADES - 1)
            looks = _tumour_looks(kind, random, mpp)
        elif kind.length_um > 2 * kind.width_um:
            classes = np.round(direction[cell] / np.pi * _ANGLES).astype(int) % _ANGLES
            looks = _spindle_looks(kind, random, mpp)
        else:
            classes = np.zeros(len(centre_um), int)
            looks = _looks(kind, random, mpp, np.ones(_LOOKS), random.uniform(0, np.pi, _LOOKS))
        chosen = classes * _LOOKS + random.integers(0, _LOOKS, len(centre_um))
        _stamp(canvas, looks, chosen, centre_um / mpp)


def _places(
    kind: NucleusKind, anatomy: Anatomy, random: np.random.Generator
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Centres (n, 2) as x, y in um and their cells of the coarse grid: one jittered place a square, kept by chance."""
    plan = anatomy.plan
    columns, rows = int(plan.width_um / kind.pitch_um), int(plan.height_um / kind.pitch_um)
    x, y = np.meshgrid(np.arange(columns), np.arange(rows))
    square = np.column_stack([x.ravel(), y.ravel()]).astype(np.float64)
    square[:, 0] += 0.5 * (square[:, 1] % 2)  # staggered, so that rows do not show
    centre = (square + 0.5 + random.uniform(-0.38, 0.38, square.shape)) * kind.pitch_um
    cell = (
        np.clip((centre[:, 1] / CELL_UM).astype(int), 0, anatomy.shape[0] - 1),
        np.clip((centre[:, 0] / CELL_UM).astype(int), 0, anatomy.shape[1] - 1),
    )
    chance = kind.share * (0.55 + 0.75 * anatomy.crowding[cell])
    share = anatomy.composition[kind.region][cell]
    chance = chance * share * np.clip(3 * share, 0, 1) * (anatomy.tissue[cell] > 0.6)  # few strays among other tissue
    kept = random.random(len(centre)) < chance
    return centre[kept], (cell[0][kept], cell[1][kept])


def _tumour_looks(kind: NucleusKind, random: np.random.Generator, mpp: float) -> np.ndarray:
    """Looks of all grades, one grade after another; every grade shares one frame size."""
    sizes = np.repeat(1 + kind.growth * (np.arange(_GRADES) + 0.5) / _GRADES, _LOOKS)
    return _looks(kind, random, mpp, sizes, random.uniform(0, np.pi, sizes.size), uneven=0.12, nucleolus=True)


def _spindle_looks(kind: NucleusKind, random: np.random.Generator, mpp: float) -> np.ndarray:
    """Looks of all angles, one angle after another."""
    angles = np.repeat(np.arange(_ANGLES) * np.pi / _ANGLES, _LOOKS) + random.normal(0, 0.15, _ANGLES * _LOOKS)
    return _looks(kind, random, mpp, np.ones(angles.size), angles)


def _looks(
    kind: NucleusKind,
    random: np.random.Generator,
    mpp: float,
    sizes: np.ndarray,
    angles: np.ndarray,
    uneven: float = 0.05,
    nucleolus: bool = False,
) -> np.ndarray:
    """Draw nuclei of the given sizes and angles: shape (nuclei, side, side), haematoxylin."""
    from scipy.ndimage import gaussian_filter

    n = len(sizes)
    reach = int(np.ceil(1.35 * kind.length_um * sizes.max() / mpp)) + 1
    axis = np.arange(-reach, reach + 1) * mpp
    y, x = np.meshgrid(axis, axis, indexing="ij")
    shift = random.uniform(-0.5, 0.5, (n, 2)) * mpp  # so that no nucleus sits exactly on a pixel
    u, v = x[None] - shift[:, :1, None], y[None] - shift[:, 1:, None]
    cos, sin = np.cos(angles)[:, None, None], np.sin(angles)[:, None, None]
    along, across = cos * u + sin * v, -sin * u + cos * v
    stretch = sizes * random.lognormal(0, 0.09, n)
    length = (kind.length_um * stretch * random.lognormal(0, 0.08, n))[:, None, None]
    width = (kind.width_um * stretch * random.lognormal(0, 0.10, n))[:, None, None]
    turn = np.arctan2(across, along)
    lobes = 1 + uneven * np.cos(2 * turn + random.uniform(0, 6.28, (n, 1, 1)))
    lobes += 0.6 * uneven * np.cos(3 * turn + random.uniform(0, 6.28, (n, 1, 1)))
    radius = np.sqrt((along / length) ** 2 + (across / width) ** 2) / lobes
    edge = 0.55 * mpp / np.minimum(length, width) + 0.06
    mask = 1 / (1 + np.exp(np.clip((radius - 1) / edge * 2, -30, 30)))
    grain = gaussian_filter(random.standard_normal((n, *x.shape)), (0, 0.8 / mpp, 0.8 / mpp))
    grain /= grain.std()
    body = 1 + kind.clumps * 0.5 * grain + kind.clumps * 0.7 * (np.clip(radius, 0, 1) ** 4 - 0.4)
    if nucleolus:
        place = random.normal(0, 0.28, (n, 2, 1, 1)) * kind.width_um * sizes[:, None, None, None]
        far = (u - place[:, 0]) ** 2 + (v - place[:, 1]) ** 2
        body += 0.55 * np.exp(-far / (2 * (0.9 * sizes[:, None, None]) ** 2))
    dark = kind.darkness * random.lognormal(0, 0.13, (n, 1, 1))
    return (mask * dark * np.clip(body, 0.3, None)).astype(np.float32)


def _stamp(canvas: np.ndarray, looks: np.ndarray, chosen: np.ndarray, centre_px: np.ndarray) -> None:
    """Lay `looks[chosen]` onto the canvas at the centres, the larger value winning."""
    reach = looks.shape[1] // 2
    height, width = canvas.shape
    x, y = np.round(centre_px - 0.5).astype(int).T
    inside = (x >= reach) & (y >= reach) & (x < width - reach) & (y < height - reach)
    x, y, chosen = x[inside], y[inside], chosen[inside]
    offset = np.arange(-reach, reach + 1)
    window = (offset[:, None] * width + offset[None, :]).ravel()
    flat, pictures = canvas.reshape(-1), looks.reshape(len(looks), -1)
    for start in range(0, len(x), 4096):  # bounded memory: 4,096 nuclei at a time
        part = slice(start, start + 4096)
        np.maximum.at(flat, (y[part] * width + x[part])[:, None] + window, pictures[chosen[part]])
