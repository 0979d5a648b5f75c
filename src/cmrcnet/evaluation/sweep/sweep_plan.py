"""The trials of a sweep: a base config, and what each trial sets otherwise."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from cmrcnet.config import Config, parse_yaml
from cmrcnet.errors import BadOption, UnknownName

BASE = "base"


@dataclass(frozen=True)
class Trial:
    """One config of a sweep."""

    name: str  # "mask_rate=0.3, reconstruction_loss=mse"; "base" for the base config itself
    settings: dict[str, Any]  # dotted key to value, over the base config
    config: Config


@dataclass(frozen=True)
class SweepPlan:
    """All trials of a sweep, the base first."""

    base: Config
    trials: tuple[Trial, ...]  # no two of the same config
    keys: tuple[str, ...]  # settings that differ between trials
    grid: bool  # every value of a key with every value of the others; otherwise each alone against the base
    about: str = ""

    def only(self, names: Sequence[str] | None) -> SweepPlan:
        """The base and the trials of these names; all for None."""
        if names is None:
            return self
        known = [trial.name for trial in self.trials]
        for name in names:
            if name not in known:
                raise UnknownName("trial", name, known)
        trials = tuple(trial for trial in self.trials if trial.name in (BASE, *names))
        return SweepPlan(self.base, trials, self.keys, self.grid, self.about)


def plan_over(
    base: Config, over: Mapping[str, Sequence[Any]], *, one_at_a_time: bool = False, about: str = ""
) -> SweepPlan:
    """Trials of a grid, or each value alone, over dotted keys and their values.

    Raises
    ------
    BadOption, UnknownName
        No key, no value, a value that the key cannot take, or a key that no config has.
    """
    if not over:
        raise BadOption("over", "", "at least one KEY=a,b,c, or --preset NAME")
    for key, values in over.items():
        if not values:
            raise BadOption(f"over {key}", "", "values parted by commas, as in model.mask_rate=0.3,0.5")
    if one_at_a_time:
        choices = [{key: value} for key, values in over.items() for value in values]
    else:
        choices = [dict(zip(over, values, strict=True)) for values in itertools.product(*over.values())]
    named = [(", ".join(f"{k.split('.')[-1]}={shown(v)}" for k, v in each.items()), each) for each in choices]
    return SweepPlan(base, _trials(base, named), tuple(over), not one_at_a_time, about)


def plan_switches(base: Config, switches: Sequence[Mapping[str, Any]], about: str = "") -> SweepPlan:
    """Each switch alone: to what was released, or back to what is sound where the base has what was released.

    A switch that the base cannot take alone (random validation spots, where heads are fitted on validation groups) is
    left out, and `about` says so. A switch has a `name`, and settings under `sound` and under `released`.
    """
    named, left_out = [], []
    for switch in switches:
        is_released = all(_has(base, key, value) for key, value in switch["released"].items())
        side = "sound" if is_released else "released"
        name = f"{switch['name']}: {side}"
        try:
            base.override(switch[side])
        except BadOption as error:
            left_out.append(f"{name} ({error})")
            continue
        named.append((name, dict(switch[side])))
    if left_out:
        about = f"{about} Left out, because {base.name} cannot take them alone: {'; '.join(left_out)}"
    keys = tuple(dict.fromkeys(key for _, settings in named for key in settings))
    return SweepPlan(base, _trials(base, named), keys, False, about)


def preset_plan(base: Config, name: str) -> SweepPlan:
    """A sweep that ships, by name."""
    folder = resources.files("cmrcnet") / "sweeps"
    shipped = {entry.name.removesuffix(".yaml"): entry for entry in folder.iterdir() if entry.name.endswith(".yaml")}
    if name not in shipped:
        raise UnknownName("sweep preset", name, sorted(shipped), "Your own: --over KEY=a,b,c.")
    written = yaml.safe_load(shipped[name].read_bytes())
    if "switches" in written:
        return plan_switches(base, written["switches"], written["about"])
    return plan_over(base, written["over"], one_at_a_time=written.get("one_at_a_time", False), about=written["about"])


def read_axes(over: Sequence[str]) -> dict[str, list[Any]]:
    """Values of each key, from ``KEY=a,b,c``; values are YAML, so ``model.blocks=[4, 7],[10]`` gives two lists."""
    axes: dict[str, list[Any]] = {}
    for each in over:
        key, equals, values = each.partition("=")
        key = key.strip()
        if not equals or not key:
            raise BadOption("over", each, "KEY=a,b,c, as in --over model.mask_rate=0,0.3,0.5")
        if key in axes:
            raise BadOption("over", key, "each key once, with all its values behind it")
        try:
            axes[key] = parse_yaml(f"[{values}]")
        except (yaml.YAMLError, ValueError) as error:
            raise BadOption(f"over {key}", values, "values parted by commas") from error
    return axes


def shown(value: Any) -> str:
    """A value as a word of a name or a table."""
    if isinstance(value, list | tuple):
        return "[" + " ".join(shown(each) for each in value) + "]"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value).lower()


def value_of(config: Config, key: str) -> Any:
    """What a config says under a dotted key."""
    inner: Any = config.to_dict()
    for part in key.split("."):
        inner = inner[part]
    return inner


def _has(base: Config, key: str, value: Any) -> bool:
    """Whether the base has this value; one that it cannot even take, it has not."""
    try:
        return base.override({key: value}).to_dict() == base.to_dict()
    except BadOption:
        return False


def _trials(base: Config, named: Sequence[tuple[str, dict[str, Any]]]) -> tuple[Trial, ...]:
    """The base, then every trial whose config is new."""
    trials = [Trial(BASE, {}, base)]
    seen = [base.to_dict()]
    for name, settings in named:
        config = base.override(settings)
        if config.to_dict() not in seen:
            seen.append(config.to_dict())
            trials.append(Trial(name, settings, config))
    return tuple(trials)
