"""A recipe explains itself, defends itself, and every knob on it turns something."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import types
import typing
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import cmrcnet
from cmrcnet.errors import BadOption, CmrcnetError, NoSuchFile, UnknownKey, UnknownName
from cmrcnet.recipe import ModelConfig, PanelConfig, Recipe, TrainConfig, shipped_recipes

SRC = Path(cmrcnet.__file__).parent
SECTIONS = {
    f.name: typing.get_type_hints(Recipe)[f.name]
    for f in dataclasses.fields(Recipe)
    if dataclasses.is_dataclass(typing.get_type_hints(Recipe)[f.name])
}
KNOBS = [(section, f.name) for section, kind in SECTIONS.items() for f in dataclasses.fields(kind)]


# --- what ships ----------------------------------------------------------------------------------------------------


def test_the_promised_recipes_ship():
    assert {"default", "paper", "as-released", "contrastive-only", "tiny"} <= set(shipped_recipes())


@pytest.mark.parametrize("name", shipped_recipes())
def test_each_shipped_recipe_loads_and_says_what_it_is(name):
    recipe = Recipe.load(name)
    assert recipe.name == name
    assert len(recipe.about) > 20
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_the_paper_recipe_is_the_papers_numbers():
    paper = Recipe.load("paper")
    assert (paper.train.epochs, paper.train.batch_size) == (60, 64)
    assert (paper.train.learning_rate, paper.train.final_learning_rate) == (1e-4, 1e-5)
    assert paper.train.weight_decay == 1e-3
    assert (paper.model.embedding_dim, paper.model.head_dropout, paper.model.temperature) == (256, 0.1, 1.0)
    assert (paper.model.gene_tokens, paper.model.fusion_dim, paper.model.fusion_dropout) == (8, 256, 0.25)
    assert (paper.model.cross_heads, paper.model.fusion_heads, paper.model.fusion_blocks) == (4, 8, 2)
    assert (paper.model.mask_rate, paper.model.mask_rate_is, paper.model.mask_unit) == (0.5, "hidden", "token")
    assert (paper.model.similarity, paper.model.targets) == ("dot", "soft")
    assert (paper.model.reconstruct, paper.model.reconstruction_loss) == ("image", "mse")
    assert paper.model.train_encoder
    assert (paper.readout.k, paper.readout.weighting) == (50, "mean")
    assert (paper.patch.size_px, paper.patch.um_per_px) == (224, 0.5)


OF_THE_RECONSTRUCTION = re.compile(r"reconstruct|detach_target|mask_|gene_tokens|fusion_|cross_heads|share_fusion")


def test_contrastive_only_differs_from_default_in_the_reconstruction_alone():
    default, alone = Recipe.load("default").to_dict(), Recipe.load("contrastive-only").to_dict()
    different = {(section, knob) for section, knob in KNOBS if default[section][knob] != alone[section][knob]}
    assert ("model", "reconstruct") in different
    assert {knob for _, knob in different if not OF_THE_RECONSTRUCTION.match(knob)} == set()
    assert alone["model"]["reconstruct"] == "none"


def partners_and_others(model: ModelConfig, pairs: int = 32, dim: int = 64, steps: int = 300) -> tuple[float, float]:
    """Mean cosine of true partners and of all others, where free embeddings make the contrastive loss smallest.

    The loss is the formula of the paper written out: logits over temperature, soft targets times temperature.
    """
    torch.manual_seed(0)
    image, gene = torch.randn(pairs, dim, requires_grad=True), torch.randn(pairs, dim, requires_grad=True)
    optimiser = torch.optim.Adam([image, gene], lr=0.05)
    length = F.normalize if model.similarity == "cosine" else (lambda x, dim: x)
    for _ in range(steps):
        i, g = length(image, dim=1), length(gene, dim=1)
        logits = g @ i.T / model.temperature
        alike = torch.softmax((i @ i.T + g @ g.T) / 2 * model.temperature, dim=1)
        targets = torch.eye(pairs) if model.targets == "identity" else alike
        loss = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    cosine = (F.normalize(gene, dim=1) @ F.normalize(image, dim=1).T).detach()
    others = cosine[~torch.eye(pairs, dtype=bool)]
    return float(cosine.diagonal().mean()), float(others.mean())


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_recipes_contrastive_loss_is_smallest_where_partners_meet(name):
    """Temperature 0.1 with cosine similarity and soft targets fails this: targets times 0.1 are nearly uniform."""
    partners, others = partners_and_others(Recipe.load(name).model)
    assert partners > 0.3
    assert abs(others) < 0.1


def test_that_trap_is_seen():
    partners, _ = partners_and_others(ModelConfig(temperature=0.1, similarity="cosine", targets="soft"))
    assert partners < 0.1


# --- the switches of the released code -----------------------------------------------------------------------------


@cache
def knob_docs() -> dict[tuple[str, str], str]:
    """The sentence under each field, by (section, field)."""
    found = {}
    for section, kind in SECTIONS.items():
        source = ast.parse((SRC.parent / (kind.__module__.replace(".", "/") + ".py")).read_text())
        [body] = [
            node.body for node in ast.walk(source) if isinstance(node, ast.ClassDef) and node.name == kind.__name__
        ]
        for line, after in pairwise(body):
            if (
                isinstance(line, ast.AnnAssign)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                found[section, line.target.id] = after.value.value
    return found


RELEASED = [knob for knob in KNOBS if re.search(r"Released:|\(released", knob_docs().get(knob, ""))]


def test_every_knob_explains_itself():
    assert [knob for knob in KNOBS if len(knob_docs().get(knob, "")) < 10] == []


def test_the_table_of_departures_is_there():
    assert len(RELEASED) >= 17


@pytest.mark.parametrize(("section", "knob"), RELEASED)
def test_as_released_flips_every_switch_that_is_marked(section, knob):
    default = getattr(getattr(Recipe(), section), knob)
    released = getattr(getattr(Recipe.load("as-released"), section), knob)
    assert released != default
    stated = re.search(r"Released: \"?([\w.]+\w)", knob_docs()[section, knob])
    if stated:
        assert released == yaml.safe_load(stated.group(1))


def test_as_released_starts_from_the_papers_training_schedule():
    paper, released = Recipe.load("paper").train, Recipe.load("as-released").train
    for knob in ("epochs", "batch_size", "learning_rate", "final_learning_rate", "weight_decay", "augment"):
        assert getattr(paper, knob) == getattr(released, knob)


# --- dead knobs ----------------------------------------------------------------------------------------------------


@cache
def reads() -> dict[str, set[str]]:
    """Field name -> the last names of the expressions that it is read from, everywhere but in the recipe itself."""
    found: dict[str, set[str]] = {}
    for path in sorted(SRC.rglob("*.py")):
        if path.name == "recipe.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                owner = node.value
                last = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
                found.setdefault(node.attr, set()).add(last)
    return found


@pytest.mark.parametrize(("section", "knob"), KNOBS)
def test_no_knob_is_dead(section, knob):
    """Each field is read in src, from an expression that ends in its section's name or in a config's."""
    owners = {
        section,
        "config",
        "_config",
        f"{section}_config",
        "self" if section == "patch" else "config",
        "scale",
        "settings",
    }
    assert reads().get(knob, set()) & owners, f"nobody reads {section}.{knob}; it is read from {reads().get(knob)}"


@pytest.mark.parametrize("knob", ["name", "about"])
def test_the_recipes_own_name_is_shown_somewhere(knob):
    assert reads()[knob]


def test_the_dead_knob_test_can_fail():
    assert "a_knob_that_nobody_turns" not in reads()


# --- defending itself ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"modle": {}}, "modle"),
        ({"model": {"temprature": 1.0}}, "model.temprature"),
        ({"train": {"lr": 1e-4}}, "train.lr"),
    ],
)
def test_an_unknown_key_is_refused_by_name(values, key):
    with pytest.raises(UnknownKey, match=f"has the key '{re.escape(key)}', which no recipe knows; known here: "):
        Recipe.from_dict(values)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"model": 5}, "model is 5; wanted keys and values"),
        ({"train": {"epochs": "ten"}}, "train.epochs is 'ten'; wanted a whole number"),
        ({"train": {"epochs": 2.5}}, "train.epochs is 2.5; wanted a whole number"),
        ({"train": {"epochs": True}}, "train.epochs is True; wanted a whole number"),
        ({"train": {"augment": 1}}, "train.augment is 1; wanted true or false"),
        ({"train": {"learning_rate": "fast"}}, "train.learning_rate is 'fast'; wanted a number"),
        ({"model": {"encoder": 3}}, "model.encoder is 3; wanted text"),
        ({"model": {"blocks": 3}}, "model.blocks is 3; wanted a list"),
        ({"model": {"blocks": ["a"]}}, "model.blocks is 'a'; wanted a whole number"),
        ({"model": {"similarity": "euclid"}}, "model.similarity is 'euclid'; wanted one of cosine, dot"),
        ({"panel": {"target_sum": "mean"}}, "panel.target_sum is 'mean'; wanted one of"),
        ({"panel": {"target_sum": True}}, "panel.target_sum is True; wanted one of"),
    ],
)
def test_a_wrong_type_is_refused_with_what_was_wanted(values, sentence):
    with pytest.raises(BadOption, match=re.escape(sentence)):
        Recipe.from_dict(values)


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("patch", {"size_px": 0}),
        ("patch", {"um_per_px": 0.0}),
        ("patch", {"um_per_px": -0.5}),
        ("panel", {"n_hvg": 0}),
        ("panel", {"target_sum": 0.0}),
        ("panel", {"kind": "list"}),
        ("model", {"mask_rate": 1.01}),
        ("model", {"mask_rate": -0.01}),
        ("model", {"temperature": 0.0}),
        ("model", {"temperature": float("nan")}),
        ("model", {"head_dropout": 1.0}),
        ("model", {"fusion_dropout": -0.1}),
        ("model", {"embedding_dim": 0}),
        ("model", {"cross_heads": 3}),
        ("model", {"fusion_heads": 7}),
        ("train", {"epochs": 0}),
        ("train", {"batch_size": 0}),
        ("train", {"learning_rate": 0.0}),
        ("train", {"final_learning_rate": -1e-5}),
        ("train", {"clip_norm": -1.0}),
        ("train", {"weight_decay": -0.1}),
        ("train", {"ema_decay": 1.0}),
        ("train", {"validate_every": 0}),
        ("readout", {"k": 0}),
        ("readout", {"temperature": 0.0}),
        ("evaluation", {"set_size": 0}),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(section, values):
    [knob] = values
    named = "panel.genes" if values == {"kind": "list"} else f"{section}.{knob}"
    with pytest.raises(BadOption, match=f"{re.escape(named)} is .*; wanted "):
        Recipe.from_dict({section: values})


def test_the_dataclasses_defend_themselves_without_yaml():
    with pytest.raises(BadOption, match=r"train\.epochs is 0"):
        TrainConfig(epochs=0)
    with pytest.raises(BadOption, match=r"model\.mask_rate is 2"):
        ModelConfig(mask_rate=2)
    with pytest.raises(BadOption, match=r"panel\.genes"):
        PanelConfig(kind="list")
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().name = "other"


def test_an_unknown_recipe_names_those_that_ship():
    with pytest.raises(UnknownName, match=r"There is no recipe 'papre'; known: as-released.*ends in \.yaml"):
        Recipe.load("papre")


def test_a_recipe_file_that_is_not_there(tmp_path):
    with pytest.raises(NoSuchFile, match="cmrcnet recipes"):
        Recipe.load(tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    "content", [b"- a\n- b\n", b"model: [1\n", b"just words", b"\xff\xfe\x00\x81", b"a: !!python/name:os.system"]
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, content):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(CmrcnetError, match=r"mine\.yaml"):
        Recipe.load(path)


# --- reading and overriding ----------------------------------------------------------------------------------------


def test_a_file_overrides_the_defaults_and_nothing_else(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nreadout: {k: 100}\n")
    recipe = Recipe.load(path)
    assert (recipe.name, recipe.readout.k) == ("mine", 100)
    assert recipe.override({"readout.k": 50, "name": "default"}) == Recipe()


def test_an_empty_file_is_the_defaults(tmp_path):
    path = tmp_path / "mine.yml"
    path.write_text("")
    assert Recipe.load(path) == Recipe()


@pytest.mark.parametrize(("text", "number"), [("1e-4", 1e-4), ("3.0e-4", 3e-4), ("2E2", 200.0), ("7", 7.0)])
def test_numbers_in_exponent_form_are_numbers(tmp_path, text, number):
    path = tmp_path / "mine.yaml"
    path.write_text(f"train:\n  learning_rate: {text}\n")
    for rate in (
        Recipe.load(path).train.learning_rate,
        Recipe().override({"train.learning_rate": text}).train.learning_rate,
    ):
        assert isinstance(rate, float)
        assert rate == number


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("readout.k", "100", 100),
        ("model.blocks", "[4, 7]", (4, 7)),
        ("model.detach_target", "false", False),
        ("model.encoder_depth", "8", 8),
        ("model.encoder_depth", "null", None),
        ("panel.target_sum", "median", "median"),
        ("panel.genes", "[ERBB2, GNAS]", ("ERBB2", "GNAS")),
        ("model.encoder", "timm:vit_base_patch32_224", "timm:vit_base_patch32_224"),
    ],
)
def test_a_setting_given_as_text_becomes_its_type(key, text, value):
    section, knob = key.split(".")
    assert getattr(getattr(Recipe().override({key: text}), section), knob) == value


@pytest.mark.parametrize("key", ["readout.kk", "nonsense", "nonsense.k", "readout.k.x"])
def test_a_setting_of_an_unknown_key_is_refused(key):
    with pytest.raises(UnknownKey, match=re.escape(key)):
        Recipe().override({key: "1"})


def test_overriding_leaves_the_original_alone():
    recipe = Recipe.load("tiny")
    before = recipe.to_dict()
    recipe.override({"readout.k": 99, "model.blocks": "[1]"})
    assert recipe.to_dict() == before


# --- properties ----------------------------------------------------------------------------------------------------

SHARES = st.floats(0.0, 0.99)
WORDS = st.text(st.characters(exclude_categories=["C", "Z"], include_characters=" "))
"""Printable: PyYAML writes some control characters so that it reads them as spaces."""
NARROW = {
    "cross_heads": st.sampled_from([1, 2, 4]),
    "fusion_heads": st.sampled_from([1, 2, 8]),
    "fusion_dim": st.sampled_from([8, 64, 256]),
    "genes": st.lists(WORDS, min_size=1, max_size=5).map(tuple),
    **dict.fromkeys(("mask_rate", "head_dropout", "fusion_dropout", "ema_decay"), SHARES),
    # Knobs that stand or fall together: here as without views and components; recipes that ship have the others.
    "views_um": st.just(()),
    "orientations": st.just(1),
    "neighbourhood_um": st.just(0.0),
    "standardize": st.just("training"),
    "depth_weights": st.just(False),
    "ranks": st.just(()),
    "pool": st.just("mean"),
    "ReadoutConfig.kind": st.just("retrieval"),
    "amplitude": st.just(0.0),
}


def values_of(hint: object) -> st.SearchStrategy:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*map(values_of, arguments))
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is tuple:
        return st.lists(values_of(arguments[0]), max_size=4).map(tuple)
    return {
        bool: st.booleans(),
        int: st.integers(1, 10_000),
        float: st.floats(1e-8, 1e8),
        str: WORDS,
        type(None): st.none(),
    }[hint]


def configs(kind: type) -> st.SearchStrategy:
    hints = typing.get_type_hints(kind)
    own = {f.name: NARROW.get(f"{kind.__name__}.{f.name}", NARROW.get(f.name)) for f in dataclasses.fields(kind)}
    return st.builds(kind, **{name: values_of(hints[name]) if own[name] is None else own[name] for name in own})


RECIPES = st.one_of(
    st.builds(Recipe, name=WORDS, about=WORDS, **{name: configs(kind) for name, kind in SECTIONS.items()}),
    st.sampled_from(shipped_recipes()).map(Recipe.load),
)


@given(recipe=RECIPES)
@settings(max_examples=40, deadline=None)
def test_a_recipe_survives_yaml_and_json(recipe):
    plain = recipe.to_dict()
    assert Recipe.from_dict(plain) == recipe
    assert Recipe.from_dict(json.loads(json.dumps(plain))) == recipe
    assert Recipe.from_dict(yaml.safe_load(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))) == recipe


@given(recipe=RECIPES, data=st.data())
@settings(max_examples=40, deadline=None)
def test_overriding_every_knob_with_its_own_value_changes_nothing(recipe, data):
    section, knob = data.draw(st.sampled_from(KNOBS))
    value = recipe.to_dict()[section][knob]
    if isinstance(value, str):
        value = yaml.safe_dump(value, allow_unicode=True)
    assert recipe.override({f"{section}.{knob}": value}) == recipe


def test_a_wish_for_neighbours_is_cut_to_what_a_bank_holds():
    readout = Recipe.load("default").readout
    assert readout.within(7) == dataclasses.replace(readout, k=7)
    assert readout.within(readout.k) == readout == readout.within(10**7)
