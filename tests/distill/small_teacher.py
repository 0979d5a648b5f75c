"""Teachers for students: one that averages measured expression, and one on expression components, both untrained."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from cmrcnet.config import Config
from cmrcnet.datasets.synthetic import synthetic_cohort
from cmrcnet.features.extract import extract
from cmrcnet.features.spec import FeatureSpec
from cmrcnet.genes.components import find_components
from cmrcnet.genes.gene_sets import GenePanel
from cmrcnet.heads.ensemble import Ensemble
from cmrcnet.heads.head import Head
from cmrcnet.heads.pca import fit_pca
from cmrcnet.heads.ridge import KernelRidge, Ridge
from cmrcnet.models.cmrcnet import CMRCNet
from cmrcnet.models.encoders import create_image_encoder
from cmrcnet.models.trained_model import Provenance, TrainedModel
from cmrcnet.retrieval.bank import ReferenceBank, build_bank
from cmrcnet.slides.section import Cohort
from tests.inference.small_model import SETTINGS, VIEWS

RANK = 3
COMPONENTS = {"target.ranks": [2, RANK], "target.gene_rank": 2, "train.validation": "each", "evaluation.set_size": 10}


@cache
def cohort() -> Cohort:
    """Four made-up sections of four patients."""
    return synthetic_cohort(patients=4, spots=20, genes=80, seed=0)


@cache
def averaging() -> tuple[TrainedModel, ReferenceBank]:
    """A teacher that averages measured expression; it looks at plain patches."""
    config = Config.load("tiny").override(SETTINGS | {"evaluation.set_size": 10})
    genes = cohort().read(cohort().sections[0]).genes[:12]
    return _with_bank(_model(config, GenePanel(genes), len(genes)))


@cache
def on_components(kind: str = "ensemble") -> tuple[TrainedModel, ReferenceBank]:
    """A teacher on three expression components, whose ridge looks at three features; it looks at two views."""
    config = Config.load("tiny").override(SETTINGS | VIEWS | COMPONENTS | {"head.kind": kind})
    genes = cohort().read(cohort().sections[0]).genes[:40]
    panel = GenePanel(genes)
    components = find_components((panel.select(section) for section in cohort()), RANK)
    encoder = create_image_encoder(config.model.encoder, weights="random")
    seen = [extract(encoder, each.slide, each.spots.centre_px, FeatureSpec.of(config, encoder)) for each in cohort()]
    reduction = fit_pca(np.concatenate(seen), seed=0)
    rng = np.random.default_rng(1)
    weights = np.zeros((reduction.directions.shape[1], RANK), np.float32)
    weights[:3] = rng.normal(size=(3, RANK))
    landmarks = reduction.apply(seen[0])
    head = Head(
        reduction,
        Ridge(weights, np.zeros(RANK, np.float32)),
        KernelRidge(
            landmarks, rng.normal(size=(len(landmarks), RANK)).astype(np.float32), np.zeros(RANK, np.float32), 0.1
        ),
        Ensemble(
            {"retrieval": 0.5, "ridge": 0.5, "kernel": 0.0},
            {"retrieval": 1.0, "ridge": 1.0, "kernel": 1.0},
            np.array([1.0, 1.0, 0.5], np.float32),
            1.0,
            np.eye(RANK, dtype=np.float32),
        ),
    )
    return _with_bank(_model(config, panel, 2, components, head))


def _model(config: Config, panel: GenePanel, n_genes: int, components=None, head=None) -> TrainedModel:
    encoder = create_image_encoder(config.model.encoder, weights="random")
    torch.manual_seed(0)
    network = CMRCNet(config.model, n_genes=n_genes, token_dim=encoder.dim)
    provenance = Provenance(cohort().sections, cohort().patients)
    return TrainedModel(network, encoder, panel, config, provenance, components, head)


def _with_bank(model: TrainedModel) -> tuple[TrainedModel, ReferenceBank]:
    return model, build_bank(model, cohort())
