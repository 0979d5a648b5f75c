"""A small made-up cohort and presets that train on it in a second."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from scipy import sparse

from cmrcnet.config import Config
from cmrcnet.datasets.synthetic import synthetic_cohort
from cmrcnet.models.trained_model import TrainedModel
from cmrcnet.retrieval.bank import ReferenceBank, build_bank
from cmrcnet.slides.section import Cohort, CohortEntry, Section
from cmrcnet.storage.cache import TokenCache
from cmrcnet.training import fit as fit_module
from cmrcnet.training.data import TrainingData

SMALL = {
    "panel.n_hvg": 60,
    "model.blocks": [7],
    "model.embedding_dim": 64,
    "model.fusion_dim": 16,
    "model.cross_heads": 2,
    "model.fusion_heads": 2,
    "model.gene_tokens": 2,
    "train.epochs": 3,
    "train.batch_size": 24,
    "train.learning_rate": 5e-3,
    "train.validate_every": 1,
    "evaluation.set_size": 10,
    "head.k": 5,
}

TRAINED_ENCODER = SMALL | {
    "model.encoder": "timm:test_vit",
    "model.weights": "random",
    "model.blocks": [],
    "patch.size_px": 160,
    "model.train_encoder": True,
}
"""A vision transformer of a few thousand weights, trained end to end."""


@pytest.fixture(scope="session")
def cohort() -> Cohort:
    return synthetic_cohort(patients=3, spots=24, genes=120, seed=0)


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> TokenCache:
    return TokenCache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def plan() -> Config:
    """The default config, made small."""
    small = {"embedding_dim": 16, "fusion_dim": 16, "cross_heads": 2, "fusion_heads": 2, "blocks": [7]}
    return Config.load("default").override(
        {f"model.{name}": value for name, value in small.items()}
        | {"features.scales_um": [112, 224], "features.augmentations": 1, "panel.n_hvg": 60}
        | {"target.ranks": [2, 4], "target.gene_rank": 3, "evaluation.set_size": 10, "head.k": 10}
        | {"train.epochs": 6, "train.batch_size": 24, "train.learning_rate": 0.005}
    )


@pytest.fixture(scope="session")
def model(cohort, cache, plan) -> TrainedModel:
    """Trained by it on all of the cohort."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in each test of this room: another number may differ in the last bit
    try:
        return fit_module.fit(cohort, plan, cache=cache)
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="session")
def bank(model, cohort, cache) -> ReferenceBank:
    """Of the cohort."""
    return build_bank(model, cohort, cache=cache)


@pytest.fixture
def config() -> Config:
    return Config.load("tiny").override(SMALL)


@pytest.fixture(autouse=True)
def _one_thread():
    """Steps of milliseconds: threads of several test runs at once would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _encoders_are_built_once(monkeypatch):
    """Reading the encoder's weights takes longer than training here. A frozen encoder is never changed."""
    monkeypatch.setattr(fit_module, "create_image_encoder", _built)


_built = functools.cache(fit_module.create_image_encoder)


def with_counts(section: Section, counts: sparse.csr_matrix) -> Section:
    return Section(
        section.name, section.patient, section.slide, section.spots, counts, section.genes, section.absent_genes
    )


def changed(cohort: Cohort, name: str, change) -> Cohort:
    """The cohort with one section put through `change`."""

    def entry(original: CohortEntry) -> CohortEntry:
        if original.section != name:
            return original
        return CohortEntry(name, original.patient, lambda: change(original.load()))

    return Cohort(cohort.name, tuple(entry(each) for each in cohort.entries))


def made_up_pairs(lengths=(5, 3, 8), patients=("A", "A", "B"), inputs="tokens", seed=0) -> TrainingData:
    rng = np.random.default_rng(seed)
    if inputs == "tokens":
        arrays = tuple(rng.normal(size=(n, 5, 3)).astype(np.float16) for n in lengths)
    else:
        arrays = tuple(rng.integers(0, 256, (n, 4, 4, 3), dtype=np.uint8) for n in lengths)
    expression = sparse.random(sum(lengths), 7, 0.4, "csr", np.float32, rng=rng)
    names = tuple(f"S{number}" for number in range(len(lengths)))
    return TrainingData(names, tuple(patients), arrays, expression)
