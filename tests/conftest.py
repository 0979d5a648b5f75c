"""Fixtures that several rooms need."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CMRCNET_ENGINE", "torch")  # converting a network takes longer than most tests encode
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that wait by spinning starve each other on a busy machine

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _private_cache(tmp_path_factory, monkeypatch):
    """No test reads or fills the user's cache."""
    monkeypatch.setenv("CMRCNET_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True, scope="session")
def _no_workers_unasked():
    """The tests share the cores already, and a worker takes longer to start than most tests compute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cmrcnet.workers.WORKER_BYTES", 2**60)
        yield


def _cohort_csv(name: str) -> Path:
    path = SHARED_DATA / name / "cohort.csv"
    if not path.exists():
        pytest.skip(f"the real sections of {name} are not beside this checkout (wanted ../shared/data/{name})")
    return path


@pytest.fixture
def her2st_csv() -> Path:
    """Cohort file of five real breast cancer sections, or a skip."""
    return _cohort_csv("her2st")


@pytest.fixture
def als_csv() -> Path:
    """Cohort file of nine real spinal cord sections, or a skip."""
    return _cohort_csv("als")


@pytest.fixture
def blca_csv() -> Path:
    """Table of 373 bladder cancer patients with follow-up, or a skip."""
    path = SHARED_DATA / "tcga_blca" / "patients.csv.gz"
    if not path.exists():
        pytest.skip("the bladder cancer patients are not beside this checkout (wanted ../shared/data/tcga_blca)")
    return path
