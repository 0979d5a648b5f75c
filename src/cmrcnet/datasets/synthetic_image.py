"""H&E image of a synthetic section: stains and nuclei as amounts, converted to light.

Nuclei have sizes typical of H&E: lymphocytes about 7 um, round and dense; tumour nuclei 9 to 15 um, oval, with clumped
chromatin and a nucleolus; fibroblasts thin spindles along the fibres. Light follows Beer and Lambert: each stain dims
red, green and blue by its own optical density per unit of amount (Ruifrok and Johnston, Anal Quant Cytol Histol 23,
2001). The stain vectors start near the reference of Macenko's normalisation (Macenko et al., ISBI 2009) and vary
between patients, as do the amounts and the lamp. Rendering goes by bands of rows, to bound memory; fine textures are
small repeating tiles. The file is one thing: from an `Anatomy` to pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cmrcnet.datasets.synthetic_anatomy import CELL_UM, Anatomy, TissuePlan, smooth_noise

if TYPE_CHECKING:
    from PIL.Image import Image

_LOOKS = 32  # different nuclei of a kind and class; drawn at random for each location
_GRADES = 5
_ANGLES = 16


@dataclass(frozen=True)
class NucleusKind:
    """Distribution and appearance of one kind of nucleus.

    `region` is the index in `REGIONS` of the tissue that holds it. A square of `pitch_um` holds at most one, and at
    mean crowding a `share` of the squares one. `length_um` and `width_um` are half axes, `growth` how much of its size
    it gains from grade 0 to 1; `darkness` is the haematoxylin in its middle, `clumps` the contrast of the chromatin.
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
    """Draw all nuclei into a map of haematoxylin (height, width), in place: the larger value of each pixel wins.

    `direction` is the angle of the fibres in radians, on the coarse grid.
    """
    for name, kind in KINDS.items():
        random = anatomy.plan.random(f"nuclei {name}")
        centre_um, cell = _centres_of(kind, anatomy, random)
        if kind.growth > 0:
            classes = np.minimum((anatomy.grade[cell] * _GRADES).astype(int), _GRADES - 1)
            sizes = np.repeat(1 + kind.growth * (np.arange(_GRADES) + 0.5) / _GRADES, _LOOKS)
            angles = random.uniform(0, np.pi, sizes.size)
            looks = _looks(kind, random, mpp, sizes, angles, uneven=0.12, nucleolus=True)
        elif kind.length_um > 2 * kind.width_um:
            classes = np.round(direction[cell] / np.pi * _ANGLES).astype(int) % _ANGLES
            angles = np.repeat(np.arange(_ANGLES) * np.pi / _ANGLES, _LOOKS)
            angles = angles + random.normal(0, 0.15, angles.size)
            looks = _looks(kind, random, mpp, np.ones(angles.size), angles)
        else:
            classes = np.zeros(len(centre_um), int)
            looks = _looks(kind, random, mpp, np.ones(_LOOKS), random.uniform(0, np.pi, _LOOKS))
        chosen = classes * _LOOKS + random.integers(0, _LOOKS, len(centre_um))
        _stamp(canvas, looks, chosen, centre_um / mpp)


def _centres_of(
    kind: NucleusKind, anatomy: Anatomy, random: np.random.Generator
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Centres (n, 2) as x, y in um and their cells of the coarse grid: one jittered point a square, kept by chance."""
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
        nucleoli = random.normal(0, 0.28, (n, 2, 1, 1)) * kind.width_um * sizes[:, None, None, None]
        far = (u - nucleoli[:, 0]) ** 2 + (v - nucleoli[:, 1]) ** 2
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


_HAEMATOXYLIN = np.array([0.600, 0.722, 0.345])
_EOSIN = np.array([0.216, 0.801, 0.558])
_FAT_CELL_UM = 62.0
_TILE_UM = 496.0  # eight fat cells; every texture repeats after it
_BAND_PX = 384


@dataclass(frozen=True)
class Staining:
    """Staining and light of one patient's sections.

    `haematoxylin` and `eosin` (3,) are the optical density of red, green, blue a unit of stain, of unit length; `lamp`
    (3,) is the colour of empty glass, 0 to 255.
    """

    haematoxylin: np.ndarray
    eosin: np.ndarray
    haematoxylin_amount: float
    eosin_amount: float
    lamp: np.ndarray


def staining_of(plan: TissuePlan) -> Staining:
    """Draw the staining of the plan's patient."""
    random = plan.patient_random("staining")

    def near(vector: np.ndarray) -> np.ndarray:
        moved = np.clip(vector + random.normal(0, 0.025, 3), 0.02, None)
        return moved / np.linalg.norm(moved)

    return Staining(
        near(_HAEMATOXYLIN),
        near(_EOSIN),
        float(random.uniform(0.85, 1.2)),
        float(random.uniform(0.8, 1.25)),
        random.uniform(236, 248) + random.uniform(-4, 4, 3),
    )


def paint(anatomy: Anatomy, mpp: float) -> np.ndarray:
    """Render the section at `mpp` micrometres a pixel: (height, width, 3) uint8, RGB."""
    plan = anatomy.plan
    height, width = round(plan.height_um / mpp), round(plan.width_um / mpp)
    bend = [45.0 * smooth_noise(plan.random(f"bend {axis}"), anatomy.shape, 9.0) for axis in "xy"]
    lean = plan.random("lean").uniform(-0.8, 0.8)  # tilts the fibres of the whole section
    bend[1] += lean * CELL_UM * np.arange(anatomy.shape[1], dtype=np.float32)
    nuclei = np.zeros((height, width), np.float32)
    down, right = np.gradient(bend[1], CELL_UM)  # fibres run where the bent row number stays the same
    stamp_nuclei(nuclei, anatomy, np.arctan2(-right, 1 + down).astype(np.float32), mpp)
    maps = [_picture(values) for values in [anatomy.tissue, *bend, *anatomy.composition]]
    textures = _Textures.of(plan, mpp)
    stain = staining_of(plan)
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, _BAND_PX):
        rows = slice(top, min(top + _BAND_PX, height))
        tissue, bend_x, bend_y, *regions = (_enlarge(each, rows, height, width) for each in maps)
        fibres = textures.fibres_along(rows, bend_x / mpp, bend_y / mpp)
        grain, walls, noise = (textures.tiled(which, rows, width) for which in ("grain", "walls", "camera"))
        haematoxylin, eosin = _ground(np.stack(regions), tissue, fibres, grain, walls)
        covered = 1 - 0.5 * np.clip(nuclei[rows], 0, 1)  # nuclei cover part of the eosin beneath them
        pixels[rows] = _light(np.maximum(haematoxylin, nuclei[rows]), eosin * covered, stain, noise)
    return pixels


@dataclass(frozen=True)
class _Textures:
    """Square tiles of fine structure, each (side, side) float32, that join at their borders.

    fibres : long thin strands, mean 0 and deviation 1; grain : of cytoplasm, the same; walls : of fat cells, 0 to 1;
    camera : noise of the camera in grey levels.
    """

    fibres: np.ndarray
    grain: np.ndarray
    walls: np.ndarray
    camera: np.ndarray

    @classmethod
    def of(cls, plan: TissuePlan, mpp: float) -> _Textures:
        from scipy.ndimage import gaussian_filter

        random = plan.random("textures")
        side = round(_TILE_UM / mpp)
        noise = random.standard_normal((side, side), dtype=np.float32)
        thin = gaussian_filter(noise, (1.1 / mpp, 24 / mpp), mode="wrap", truncate=2.5)
        thick = gaussian_filter(noise, (3.4 / mpp, 34 / mpp), mode="wrap", truncate=2.5)
        fibres = thin / thin.std() + 0.8 * thick / thick.std()
        noise = random.standard_normal((side, side), dtype=np.float32)
        fine = gaussian_filter(noise, 0.8 / mpp, mode="wrap", truncate=2.5)
        coarse = gaussian_filter(noise, 5.0 / mpp, mode="wrap", truncate=2.5)
        grain = fine / fine.std() + 1.2 * coarse / coarse.std()
        camera = 1.5 * random.standard_normal((side, side), dtype=np.float32)
        return cls(fibres / fibres.std(), grain / grain.std(), _fat_walls(random, side), camera)

    def tiled(self, which: str, rows: slice, width: int) -> np.ndarray:
        """The band `rows` of the plane that the tile covers."""
        tile = getattr(self, which)
        lines = tile[np.arange(rows.start, rows.stop) % len(tile)]
        return np.tile(lines, (1, -(-width // len(tile))))[:, :width]

    def fibres_along(self, rows: slice, bend_x: np.ndarray, bend_y: np.ndarray) -> np.ndarray:
        """Strands read along bent lines."""
        from scipy.ndimage import map_coordinates

        x = bend_x + np.arange(bend_x.shape[1], dtype=np.float32)
        y = bend_y + np.arange(rows.start, rows.stop, dtype=np.float32)[:, None]
        return map_coordinates(self.fibres, (y, x), order=1, mode="grid-wrap")


def _ground(
    regions: np.ndarray, tissue: np.ndarray, fibres: np.ndarray, grain: np.ndarray, walls: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Haematoxylin and eosin of everything but nuclei, for one band: each (rows, width)."""
    regions = np.maximum(regions, 0)
    regions = regions * regions * regions  # raises the larger share: mixtures look like patches of either tissue
    tumour, lymphocyte, stroma, fat = regions / regions.sum(axis=0)
    gaps = np.clip(1.4 * (fibres + 2.1), 0, 1)  # clefts, where fibres are thin
    eosin = stroma * gaps * (0.47 + 0.15 * fibres + 0.04 * grain)
    eosin += tumour * (0.40 + 0.06 * grain) + lymphocyte * (0.20 + 0.06 * grain) + fat * (0.5 * walls + 0.01)
    haematoxylin = tumour * (0.17 + 0.03 * grain) + lymphocyte * (0.14 + 0.03 * grain) + stroma * 0.02
    edge = np.clip(3 * (tissue - 0.35), 0, 1)
    return np.maximum(haematoxylin, 0) * edge, np.maximum(eosin, 0) * edge


def _light(haematoxylin: np.ndarray, eosin: np.ndarray, stain: Staining, noise: np.ndarray) -> np.ndarray:
    """Beer-Lambert, with a little noise of the camera: (rows, width, 3) uint8."""
    pixels = np.empty((*haematoxylin.shape, 3), np.uint8)
    for channel in range(3):
        density = float(stain.haematoxylin_amount * stain.haematoxylin[channel]) * haematoxylin
        density += float(stain.eosin_amount * stain.eosin[channel]) * eosin
        light = float(stain.lamp[channel]) * np.exp(-density)
        light += noise if channel == 0 else np.roll(noise, 37 * channel, axis=1)
        pixels[..., channel] = np.clip(light, 0, 255)
    return pixels


def _picture(values: np.ndarray) -> Image:
    """A coarse map as a Pillow picture of 32-bit floats."""
    from PIL import Image

    return Image.fromarray(values.astype(np.float32))


def _enlarge(picture: Image, rows: slice, height: int, width: int) -> np.ndarray:
    """The band `rows` of a coarse map enlarged to (height, width), bicubic."""
    from PIL import Image

    scale = picture.height / height
    box = (0, rows.start * scale, picture.width, rows.stop * scale)
    return np.asarray(picture.resize((width, rows.stop - rows.start), Image.Resampling.BICUBIC, box=box))


def _fat_walls(random: np.random.Generator, side: int) -> np.ndarray:
    """Thin walls between fat cells: where the two nearest cell centres are about equally far. (side, side), 0 to 1."""
    from scipy.spatial import KDTree

    cells = round(_TILE_UM / _FAT_CELL_UM)
    y, x = np.meshgrid(np.arange(cells), np.arange(cells), indexing="ij")
    centre = np.stack([x + 0.5 * (y % 2), y], -1).reshape(-1, 2) + random.uniform(-0.3, 0.3, (cells**2, 2))
    tree = KDTree(np.mod(centre * _FAT_CELL_UM, _TILE_UM), boxsize=_TILE_UM)
    coarse = min(side, 384)
    axis = (np.arange(coarse) + 0.5) * (_TILE_UM / coarse)
    near = tree.query(np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2), k=2)[0]
    gap = _picture((near[:, 1] - near[:, 0]).reshape(coarse, coarse))
    return np.exp(-((_enlarge(gap, slice(0, side), side, side) / 2.4) ** 2)).astype(np.float32)
