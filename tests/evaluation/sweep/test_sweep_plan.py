"""Cells of a sweep: which presets they are, and what is refused."""

from __future__ import annotations

import pytest

from cmrcnet.config import Config, shipped_presets
from cmrcnet.errors import BadOption, UnknownName
from cmrcnet.evaluation.sweep.sweep_plan import BASE, plan_over, preset_plan, read_axes, shown, value_of


def test_values_are_read_as_yaml():
    read = read_axes(["model.mask_rate=0,0.3", "model.blocks=[4, 7],[10]", "model.reconstruct=none,image", "a.b=true"])
    assert read == {
        "model.mask_rate": [0, 0.3],
        "model.blocks": [[4, 7], [10]],
        "model.reconstruct": ["none", "image"],
        "a.b": [True],
    }


@pytest.mark.parametrize(
    ("over", "sentence"),
    [
        (["head.k"], "KEY=a,b,c"),
        (["=3"], "KEY=a,b,c"),
        (["model.blocks=[4"], "values parted by commas"),
        (["head.k=1", "head.k=2"], "each key once"),
    ],
)
def test_what_is_no_key_and_values_is_refused(over, sentence):
    with pytest.raises(BadOption, match=sentence):
        read_axes(over)


def test_an_unknown_key_is_refused_with_the_known_ones():
    with pytest.raises(UnknownName, match=r"'head\.kk', which is not an option; known: k, kind, temperature, "):
        plan_over(Config.load("tiny"), {"head.kk": [1]})


def test_no_values_and_a_value_of_another_kind_are_refused():
    base = Config.load("tiny")
    with pytest.raises(BadOption, match="values parted by commas"):
        plan_over(base, read_axes(["head.k="]))
    with pytest.raises(BadOption, match="at least one KEY"):
        plan_over(base, {})
    with pytest.raises(BadOption, match="a whole number"):
        plan_over(base, {"head.k": ["many"]})


def test_a_grid_has_every_combination_and_the_base_once():
    base = Config.load("tiny").override({"head.k": 10, "model.mask_rate": 0.5})
    plan = plan_over(base, {"head.k": [10, 20], "model.mask_rate": [0.3, 0.5]})
    assert [trial.name for trial in plan.trials] == [
        BASE,
        "k=10, mask_rate=0.3",
        "k=20, mask_rate=0.3",
        "k=20, mask_rate=0.5",
    ]  # k=10, mask_rate=0.5 is the base itself
    assert plan.grid and all(value_of(c.config, "head.k") == c.settings.get("head.k", 10) for c in plan.trials)


def test_one_at_a_time_changes_one_thing():
    base = Config.load("tiny").override({"head.k": 10, "model.mask_rate": 0.5})
    plan = plan_over(base, {"head.k": [10, 20], "model.mask_rate": [0.3, 0.5]}, one_at_a_time=True)
    assert [trial.settings for trial in plan.trials] == [{}, {"head.k": 20}, {"model.mask_rate": 0.3}]


def test_trials_can_be_chosen_by_name():
    plan = plan_over(Config.load("tiny"), {"head.k": [5, 6, 7]})
    assert [trial.name for trial in plan.only(["k=6"]).trials] == [BASE, "k=6"]
    with pytest.raises(UnknownName, match="There is no trial 'k=8'; known: base, k=5"):
        plan.only(["k=8"])


@pytest.mark.parametrize("name", ["ablation", "departures", "k", "mask", "reconstruct"])
@pytest.mark.parametrize("config", shipped_presets())
def test_every_preset_fits_every_config(name, config):
    plan = preset_plan(Config.load(config), name)
    assert plan.about and len(plan.trials) >= 2 and plan.trials[0].name == BASE
    assert len({trial.name for trial in plan.trials}) == len(plan.trials)


def test_an_unknown_preset_is_refused():
    with pytest.raises(UnknownName, match="There is no sweep preset 'magic'; known: ablation, departures, k, mask"):
        preset_plan(Config.load("tiny"), "magic")


def test_departures_are_turned_back_one_by_one_from_as_released():
    base = Config.load("as-released")
    trials = {trial.name: trial.settings for trial in preset_plan(base, "departures").trials}
    assert trials["mask unit: sound"] == {"model.mask_unit": "token"}
    assert trials["gene panel: sound"] == {"panel.sections": "training"}
    assert not any(name.endswith(": released") for name in trials)


def test_departures_are_turned_on_one_by_one_from_default():
    trials = {trial.name: trial.settings for trial in preset_plan(Config.load("default"), "departures").trials}
    assert trials["geometry: released"] == {"model.similarity": "dot"}
    assert trials["undefined correlation: released"] == {"evaluation.undefined": "zero"}
    sound = {name for name in trials if name.endswith(": sound")}
    assert sound == {"reconstruction target: sound"}  # there the default is the released choice


def test_a_switch_that_the_base_cannot_take_alone_is_left_out_and_named():
    plan = preset_plan(Config.load("default"), "departures")
    assert "held in: released" not in {trial.name for trial in plan.trials}
    assert "held in: released" in plan.about and "each" in plan.about
    assert "cannot take" not in preset_plan(Config.load("as-released"), "departures").about


def test_departures_hold_every_switch_of_the_released_code():
    """All that as-released sets against the defaults is a switch of the sweep (rates, sizes and epochs aside)."""
    base, released = Config(), Config.load("as-released")
    keys = set(preset_plan(base, "departures").keys)
    for part, values in released.to_dict().items():
        if isinstance(values, dict):
            for name, value in values.items():
                if value != base.to_dict()[part][name] and f"{part}.{name}" not in ("train.refit",):
                    assert f"{part}.{name}" in keys


def test_values_are_shown_as_they_are_typed():
    assert [shown(v) for v in (None, 0.5, 10000.0, True, (4, 7), "mse")] == [
        "none",
        "0.5",
        "10000",
        "true",
        "[4 7]",
        "mse",
    ]
