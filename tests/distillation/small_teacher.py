"""Teachers for students: one that averages measured expression, and one on expression components, both untrained."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from cmrcnet.datasets.synthetic import synthetic_cohort
from cmrcnet.encoding.spot_tokens import spot_tokens
from cmrcnet.expression.components import find_components
from cmrcnet.expression.panel import GenePanel
from cmrcnet.model.encoder_registry import create_image_encoder
from cmrcnet.model.network import CMRCNet
from cmrcnet.model.trained_model import Provenance, TrainedModel
from cmrcnet.prediction.bank import ReferenceBank, build_bank
from cmrcnet.readout.blend import Blend
from cmrcnet.readout.kernel import KernelRidge
from cmrcnet.readout.readout import Readout
from cmrcnet.readout.reduction import find_reduction
from cmrcnet.readout.ridge import Ridge
from cmrcnet.recipe import Recipe
from cmrcnet.tissue.section import Cohort
from tests.prediction.small_model import SETTINGS, VIEWS

RANK = 3
COMPONENTS = {"target.ranks": [2, RANK], "target.gene_rank": 2, "train.held_in": "each", "evaluation.set_size": 10}


@cache
def cohort() -> Cohort:
    """Four made-up sections of four patients."""
    return synthetic_cohort(patients=4, spots=20, genes=80, seed=0)


@cache
def averaging() -> tuple[TrainedModel, ReferenceBank]:
    """A teacher that averages measured expression; it looks at plain patches."""
    recipe = Recipe.load("tiny").override(SETTINGS | {"evaluation.set_size": 10})
    genes = cohort().read(cohort().sections[0]).genes[:12]
    return _with_bank(_model(recipe, GenePanel(genes, 10_000.0), len(genes)))


@cache
def on_components(kind: str = "blend") -> tuple[TrainedModel, ReferenceBank]:
    """A teacher on three expression components, whose ridge looks at three features; it looks at two views."""
    recipe = Recipe.load("tiny").override(SETTINGS | VIEWS | COMPONENTS | {"readout.kind": kind})
    genes = cohort().read(cohort().sections[0]).genes[:40]
    panel = GenePanel(genes, 10_000.0)
    components = find_components((panel.select(section) for section in cohort()), RANK)
    encoder = create_image_encoder(recipe.model.encoder, weights="random")
    seen = [spot_tokens(encoder, each.slide, each.spots.centre_px, recipe) for each in cohort()]
    reduction = find_reduction(np.concatenate(seen), seed=0)
    rng = np.random.default_rng(1)
    weights = np.zeros((reduction.directions.shape[1], RANK), np.float32)
    weights[:3] = rng.normal(size=(3, RANK))
    landmarks = reduction.apply(seen[0])
    readout = Readout(
        reduction,
        Ridge(weights, np.zeros(RANK, np.float32)),
        KernelRidge(
            landmarks, rng.normal(size=(len(landmarks), RANK)).astype(np.float32), np.zeros(RANK, np.float32), 0.1
        ),
        Blend(
            {"retrieval": 0.5, "ridge": 0.5, "kernel": 0.0},
            {"retrieval": 1.0, "ridge": 1.0, "kernel": 1.0},
            np.array([1.0, 1.0, 0.5], np.float32),
            1.0,
            np.eye(RANK, dtype=np.float32),
        ),
    )
    return _with_bank(_model(recipe, panel, 2, components, readout))


def _model(recipe: Recipe, panel: GenePanel, n_genes: int, components=None, readout=None) -> TrainedModel:
    encoder = create_image_encoder(recipe.model.encoder, weights="random")
    torch.manual_seed(0)
    network = CMRCNet(recipe.model, n_genes=n_genes, token_dim=encoder.dim)
    provenance = Provenance(cohort().sections, cohort().patients)
    return TrainedModel(network, encoder, panel, recipe, provenance, components, readout)


def _with_bank(model: TrainedModel) -> tuple[TrainedModel, ReferenceBank]:
    return model, build_bank(model, cohort())
