"""Other projects' packages read our tables: `make test-integrations` installs them and sets CMRCNET_INTEGRATIONS."""

from __future__ import annotations

import os

import pytest

import cmrcnet
from cmrcnet.export.formats import export
from cmrcnet.export.stored_prediction import StoredPrediction
from cmrcnet.testing import quick_config

if not os.environ.get("CMRCNET_INTEGRATIONS"):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def section():
    return cmrcnet.synthetic_cohort(patients=1, spots=36, genes=24, seed=0).read("P1S1")


@pytest.fixture(scope="session")
def stored(section, tmp_path_factory):
    """A prediction table in a file: that of a real model."""
    cohort = cmrcnet.synthetic_cohort(patients=2, spots=36, genes=24, seed=0)
    model = cmrcnet.fit(cohort, quick_config())
    table = cmrcnet.predict(model, section.slide, bank=cmrcnet.build_bank(model, cohort), spots=section.spots)
    path = tmp_path_factory.mktemp("table") / "P1S1.h5ad"
    table.write_h5ad(path)
    return path


@pytest.fixture(scope="session")
def store(stored, section, tmp_path_factory):
    """The same as a SpatialData store."""
    path = tmp_path_factory.mktemp("store") / "P1S1.zarr"
    with StoredPrediction(stored) as prediction:
        export(prediction, path, slide=section.slide)
    return path
