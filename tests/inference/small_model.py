"""A small untrained model, and sections for it: predicting needs a network, not a good one."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse

from cmrcnet.config import Config
from cmrcnet.genes.gene_sets import GenePanel
from cmrcnet.genes.scaling import Scaling
from cmrcnet.models.cmrcnet import CMRCNet
from cmrcnet.models.encoders import create_image_encoder
from cmrcnet.models.trained_model import Provenance, TrainedModel
from cmrcnet.slides.section import Cohort, Section, Spots
from cmrcnet.slides.slide import ArraySlide

GENES = tuple(f"GENE{number}" for number in range(12))
PANEL = GENES[:6]
SETTINGS = {
    "model.encoder": "timm:test_vit",
    "model.weights": "random",
    "model.blocks": [],
    "patch.size_px": 160,
    "model.embedding_dim": 16,
    "model.fusion_dim": 16,
    "model.cross_heads": 2,
    "model.fusion_heads": 2,
    "model.standardize_tokens": False,
    "train.device": "cpu",
    "head.k": 4,
}
VIEWS = {
    "features.scales_um": [80.0, 40.0],
    "features.augmentations": 2,
    "features.neighbourhood_um": 70.0,
    "features.standardize": "section",
}


def small_model(
    seed: int = 0,
    panel: tuple[str, ...] = PANEL,
    target_sum: float | str = 10_000.0,
    patch_mpp: float = 0.5,
    views: bool = False,
) -> TrainedModel:
    """An untrained model of the smallest timm transformer, its network drawn by `seed`."""
    settings = {
        **SETTINGS,
        "panel.target_sum": target_sum,
        "patch.mpp": patch_mpp,
        **(VIEWS if views else {}),
    }
    config = Config.load("tiny").override(settings)
    encoder = create_image_encoder(config.model.encoder, weights="random")
    torch.manual_seed(seed)
    network = CMRCNet(config.model, n_genes=len(panel), token_dim=encoder.dim)
    provenance = Provenance(("A1", "B1"), ("A", "B"))
    return TrainedModel(network, encoder, GenePanel(panel, Scaling(target_sum=target_sum)), config, provenance)


def noise_slide(seed: int = 0, side: int = 400, name: str = "slide") -> ArraySlide:
    """Coloured noise that counts as tissue, half a micrometre per pixel."""
    pixels = np.random.default_rng(seed).integers(60, 256, (side, side, 3)).astype(np.uint8)
    pixels[..., 1] //= 2  # purple and pink, as stained tissue is
    return ArraySlide(pixels, 0.5, name)


def locations(count: int, seed: int = 0, side: int = 400, diameter_um: float = 55.0) -> Spots:
    """Random locations on such a slide."""
    centres = np.random.default_rng(seed).uniform(60, side - 60, (count, 2))
    return Spots(tuple(f"spot{number}" for number in range(count)), centres, diameter_um)


def small_section(
    name: str, patient: str, spots: int = 9, genes: tuple[str, ...] = GENES, absent: str = "zero", seed: int = 0
) -> Section:
    """A section of random counts, its first spot empty."""
    rng = np.random.default_rng([seed, *name.encode()])
    counts = rng.poisson(rng.gamma(0.7, 3.0, (spots, len(genes))))
    counts[0] = 0
    return Section(
        name,
        patient,
        noise_slide(seed, name=name),
        locations(spots, seed),
        sparse.csr_matrix(counts),
        genes,
        absent,
    )


def small_cohort() -> Cohort:
    """Three sections of two patients. The second names new genes; the third has a fixed assay without two genes."""
    return Cohort.of(
        [
            small_section("A1", "A", 9, GENES[:10]),
            small_section("A2", "A", 7, (*GENES[:7][::-1], "NEW1", *GENES[10:])),
            small_section("B1", "B", 8, tuple(g for g in GENES if g not in ("GENE7", "GENE8")), "unmeasured"),
        ],
        "small",
    )
