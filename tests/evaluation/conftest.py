"""One small evaluation that several tests look at."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from cmrcnet.config import Config
from cmrcnet.datasets.synthetic import synthetic_cohort
from cmrcnet.evaluation.protocol.evaluate import EvaluationRun, evaluate
from cmrcnet.evaluation.protocol.run_folder import RunFolder
from cmrcnet.evaluation.protocol.runner import limited_threads
from cmrcnet.slides.section import Cohort
from cmrcnet.storage.cache import TokenCache


@dataclass(frozen=True)
class SmallRun:
    """A finished run in its folder, and what it was made of."""

    cohort: Cohort
    config: Config
    cache: TokenCache
    folder: RunFolder
    run: EvaluationRun


SMALL_METHODS = ("cmrcnet", "ridge", "gene-mean", "random-k", "permuted-pairs")


@pytest.fixture(autouse=True)
def _one_thread_as_in_a_task():
    """Tasks of an evaluation run with one thread (see `evaluation.threads`); more may differ in the last bit."""
    with limited_threads(1):
        yield


@pytest.fixture(scope="session")
def small_config() -> Config:
    """The tiny config, made smaller, with steps enough to learn something from a hundred spots."""
    smaller = {"model.embedding_dim": 32, "model.fusion_dim": 32, "model.cross_heads": 2, "model.fusion_heads": 2}
    quicker = {"train.epochs": 3, "train.batch_size": 16, "train.learning_rate": 0.002}
    return Config.load("tiny").override(
        smaller | quicker | {"panel.n_hvg": 15, "head.k": 10, "evaluation.set_size": 12}
    )


@pytest.fixture(scope="session")
def small_cohort() -> Cohort:
    """Three patients of one section each."""
    return synthetic_cohort(patients=3, spots=60, genes=60, seed=3)


@pytest.fixture(scope="session")
def small_cache(tmp_path_factory) -> TokenCache:
    """Tokens, encoded once for all tests of this room."""
    return TokenCache(tmp_path_factory.mktemp("tokens"))


@pytest.fixture(scope="session")
def small_run(tmp_path_factory, small_cohort, small_config, small_cache) -> SmallRun:
    """CMRCNet, a few baselines and a null, patient by patient."""
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "run")
    run = evaluate(small_cohort, small_config, methods=SMALL_METHODS, cache=small_cache, folder=folder)
    folder.finish()
    return SmallRun(small_cohort, small_config, small_cache, folder, run)
