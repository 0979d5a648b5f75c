"""Ten steps on the made-up tissue give the losses that they have always given.

A change that means to move them runs ``CMRCNET_REGOLD=1 pytest tests/training/test_golden.py`` and says so.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cmrcnet.training.fit import fit

GOLDEN = Path(__file__).parents[1] / "golden" / "ten_steps.json"


def test_ten_steps_on_the_made_up_tissue(cohort, cache, config):
    plan = config.override(
        {"train.validation": "none", "train.epochs": 10, "train.batch_size": 72, "features.engine": "torch"}
    )
    history = fit(cohort, plan, cache=cache).provenance.history
    losses = {
        name: [row[name] for row in history] for name in ("loss", "contrastive", "reconstruction", "learning_rate")
    }
    if os.environ.get("CMRCNET_REGOLD"):
        GOLDEN.write_text(
            json.dumps({name: [round(v, 7) for v in values] for name, values in losses.items()}, indent=1)
        )
    golden = json.loads(GOLDEN.read_text())
    assert {name: len(values) for name, values in golden.items()} == dict.fromkeys(losses, 10)
    for name, values in losses.items():
        assert values == pytest.approx(golden[name], rel=1e-3), name
