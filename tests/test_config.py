"""A config explains itself, defends itself, and every option on it turns something."""

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
from cmrcnet.config import Config, ModelConfig, PanelConfig, TrainConfig, shipped_presets
from cmrcnet.errors import BadOption, CmrcnetError, MissingInput, UnknownName

SRC = Path(cmrcnet.__file__).parent
SECTIONS = {
    f.name: typing.get_type_hints(Config)[f.name]
    for f in dataclasses.fields(Config)
    if dataclasses.is_dataclass(typing.get_type_hints(Config)[f.name])
}
KNOBS = [(section, f.name) for section, kind in SECTIONS.items() for f in dataclasses.fields(kind)]


# --- what ships ----------------------------------------------------------------------------------------------------


def test_the_promised_configs_ship():
    assert {"default", "fast", "paper", "as-released", "contrastive-only", "tiny"} <= set(shipped_presets())


@pytest.mark.parametrize("name", shipped_presets())
def test_each_shipped_config_loads_and_says_what_it_is(name):
    config = Config.load(name)
    assert config.name == name
    assert len(config.about) > 20
    assert Config.from_dict(config.to_dict()) == config


def test_the_paper_config_is_the_papers_numbers():
    paper = Config.load("paper")
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
    assert (paper.head.k, paper.head.weighting) == (50, "mean")
    assert (paper.patch.size_px, paper.patch.mpp) == (224, 0.5)


OF_THE_RECONSTRUCTION = re.compile(r"reconstruct|detach_target|mask_|gene_tokens|fusion_|cross_heads|share_fusion")


def test_contrastive_only_differs_from_default_in_the_reconstruction_alone():
    default, alone = Config.load("default").to_dict(), Config.load("contrastive-only").to_dict()
    different = {(section, option) for section, option in KNOBS if default[section][option] != alone[section][option]}
    assert ("model", "reconstruct") in different
    assert {option for _, option in different if not OF_THE_RECONSTRUCTION.match(option)} == set()
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


@pytest.mark.parametrize("name", shipped_presets())
def test_a_configs_contrastive_loss_is_smallest_where_partners_meet(name):
    """Temperature 0.1 with cosine similarity and soft targets fails this: targets times 0.1 are nearly uniform."""
    partners, others = partners_and_others(Config.load(name).model)
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


RELEASED = [option for option in KNOBS if re.search(r"Released:|\(released", knob_docs().get(option, ""))]


def test_every_knob_explains_itself():
    assert [option for option in KNOBS if len(knob_docs().get(option, "")) < 10] == []


def test_the_table_of_departures_is_there():
    assert len(RELEASED) >= 17


@pytest.mark.parametrize(("section", "option"), RELEASED)
def test_as_released_flips_every_switch_that_is_marked(section, option):
    default = getattr(getattr(Config(), section), option)
    released = getattr(getattr(Config.load("as-released"), section), option)
    assert released != default
    stated = re.search(r"Released: \"?([\w.]+\w)", knob_docs()[section, option])
    if stated:
        assert released == yaml.safe_load(stated.group(1))


def test_as_released_starts_from_the_papers_training_schedule():
    paper, released = Config.load("paper").train, Config.load("as-released").train
    for option in ("epochs", "batch_size", "learning_rate", "final_learning_rate", "weight_decay", "augment"):
        assert getattr(paper, option) == getattr(released, option)


# --- dead options ----------------------------------------------------------------------------------------------------


@cache
def reads() -> dict[str, set[str]]:
    """Field name -> the last names of the expressions that it is read from, everywhere but in the config itself."""
    found: dict[str, set[str]] = {}
    for path in sorted(SRC.rglob("*.py")):
        if path.name == "config.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                owner = node.value
                last = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
                found.setdefault(node.attr, set()).add(last)
    return found


@pytest.mark.parametrize(("section", "option"), KNOBS)
def test_no_knob_is_dead(section, option):
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
    assert reads().get(option, set()) & owners, (
        f"nobody reads {section}.{option}; it is read from {reads().get(option)}"
    )


@pytest.mark.parametrize("option", ["name", "about"])
def test_the_configs_own_name_is_shown_somewhere(option):
    assert reads()[option]


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
    with pytest.raises(UnknownName, match=f"has the key '{re.escape(key)}', which is not an option; known: "):
        Config.from_dict(values)


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
        Config.from_dict(values)


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("patch", {"size_px": 0}),
        ("patch", {"mpp": 0.0}),
        ("patch", {"mpp": -0.5}),
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
        ("features", {"augmentations": 0}),
        ("features", {"augmentations": 4}),
        ("features", {"augmentations": [1]}),
        ("features", {"augmentations": [2, 4], "scales_um": [112]}),
        ("features", {"augmentations": [2, 9], "scales_um": [112, 350]}),
        ("features", {"augmentations": [], "scales_um": [112, 350]}),
        ("train", {"epochs": 0}),
        ("train", {"batch_size": 0}),
        ("train", {"learning_rate": 0.0}),
        ("train", {"final_learning_rate": -1e-5}),
        ("train", {"clip_norm": -1.0}),
        ("train", {"weight_decay": -0.1}),
        ("train", {"ema_decay": 1.0}),
        ("train", {"validate_every": 0}),
        ("head", {"k": 0}),
        ("head", {"temperature": 0.0}),
        ("evaluation", {"set_size": 0}),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(section, values):
    option = next(iter(values))
    named = "panel.genes" if values == {"kind": "list"} else f"{section}.{option}"
    with pytest.raises(BadOption, match=f"{re.escape(named)} is .*; wanted "):
        Config.from_dict({section: values})


def test_the_dataclasses_defend_themselves_without_yaml():
    with pytest.raises(BadOption, match=r"train\.epochs is 0"):
        TrainConfig(epochs=0)
    with pytest.raises(BadOption, match=r"model\.mask_rate is 2"):
        ModelConfig(mask_rate=2)
    with pytest.raises(BadOption, match=r"panel\.genes"):
        PanelConfig(kind="list")
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().name = "other"


def test_an_unknown_config_names_those_that_ship():
    with pytest.raises(UnknownName, match=r"There is no preset 'papre'; known: as-released.*ends in \.yaml"):
        Config.load("papre")


def test_a_config_file_that_is_not_there(tmp_path):
    with pytest.raises(MissingInput, match="cmrcnet presets"):
        Config.load(tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    "content", [b"- a\n- b\n", b"model: [1\n", b"just words", b"\xff\xfe\x00\x81", b"a: !!python/name:os.system"]
)
def test_a_file_that_is_no_config_is_refused(tmp_path, content):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(CmrcnetError, match=r"mine\.yaml"):
        Config.load(path)


# --- reading and overriding ----------------------------------------------------------------------------------------


def test_a_file_overrides_the_defaults_and_nothing_else(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nhead: {k: 100}\n")
    config = Config.load(path)
    assert (config.name, config.head.k) == ("mine", 100)
    assert config.override({"head.k": 50, "name": "default"}) == Config()


def test_an_empty_file_is_the_defaults(tmp_path):
    path = tmp_path / "mine.yml"
    path.write_text("")
    assert Config.load(path) == Config()


@pytest.mark.parametrize(("text", "number"), [("1e-4", 1e-4), ("3.0e-4", 3e-4), ("2E2", 200.0), ("7", 7.0)])
def test_numbers_in_exponent_form_are_numbers(tmp_path, text, number):
    path = tmp_path / "mine.yaml"
    path.write_text(f"train:\n  learning_rate: {text}\n")
    for rate in (
        Config.load(path).train.learning_rate,
        Config().override({"train.learning_rate": text}).train.learning_rate,
    ):
        assert isinstance(rate, float)
        assert rate == number


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("head.k", "100", 100),
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
    section, option = key.split(".")
    assert getattr(getattr(Config().override({key: text}), section), option) == value


@pytest.mark.parametrize("key", ["head.kk", "nonsense", "nonsense.k", "head.k.x"])
def test_a_setting_of_an_unknown_key_is_refused(key):
    with pytest.raises(UnknownName, match=re.escape(key)):
        Config().override({key: "1"})


def test_overriding_leaves_the_original_alone():
    config = Config.load("tiny")
    before = config.to_dict()
    config.override({"head.k": 99, "model.blocks": "[1]"})
    assert config.to_dict() == before


# --- properties ----------------------------------------------------------------------------------------------------

SHARES = st.floats(0.0, 0.99)
WORDS = st.text(st.characters(exclude_categories=["C", "Z"], include_characters=" "))
"""Printable: PyYAML writes some control characters so that it reads them as spaces."""
NARROW = {
    "cross_heads": st.sampled_from([1, 2, 4]),
    "fusion_heads": st.sampled_from([1, 2, 8]),
    "fusion_dim": st.sampled_from([8, 64, 256]),
    "genes": st.lists(WORDS, min_size=1, max_size=5).map(tuple),
    **dict.fromkeys(
        ("mask_rate", "head_dropout", "fusion_dropout", "block_dropout", "query_key_dropout", "ema_decay"), SHARES
    ),
    # Knobs that stand or fall together: here as without views and components; presets that ship have the others.
    "scales_um": st.just(()),
    "method": st.sampled_from(["auto", "patches"]),
    "augmentations": st.just(1),
    "neighbourhood_um": st.just(0.0),
    "standardize": st.just("training"),
    "window_um": st.just(0.0),
    "depth_weights": st.just(False),
    "ranks": st.just(()),
    "pool": st.just("mean"),
    "trained_blocks": st.none(),
    "reconstruct": st.sampled_from(["image", "gene", "expression", "none"]),
    "HeadConfig.kind": st.just("retrieval"),
    "variance_rescaling": st.just(0.0),
    "zero_replacement": st.floats(1e-6, 0.49),
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


CONFIGS = st.one_of(
    st.builds(Config, name=WORDS, about=WORDS, **{name: configs(kind) for name, kind in SECTIONS.items()}),
    st.sampled_from(shipped_presets()).map(Config.load),
)


@given(config=CONFIGS)
@settings(max_examples=40, deadline=None)
def test_a_config_survives_yaml_and_json(config):
    plain = config.to_dict()
    assert Config.from_dict(plain) == config
    assert Config.from_dict(json.loads(json.dumps(plain))) == config
    assert Config.from_dict(yaml.safe_load(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))) == config


@given(config=CONFIGS, data=st.data())
@settings(max_examples=40, deadline=None)
def test_overriding_every_knob_with_its_own_value_changes_nothing(config, data):
    section, option = data.draw(st.sampled_from(KNOBS))
    value = config.to_dict()[section][option]
    if isinstance(value, str):
        value = yaml.safe_dump(value, allow_unicode=True)
    assert config.override({f"{section}.{option}": value}) == config


def test_a_wish_for_neighbours_is_cut_to_what_a_bank_holds():
    head = Config.load("default").head
    assert head.within(7) == dataclasses.replace(head, k=7)
    assert head.within(head.k) == head == head.within(10**7)


HOSTILE_YAML = {
    "nested sequences": ("head: " + "[" * 100_000, "nested more than 12 deep"),
    "nested mappings": ("{a: " * 5_000, "nested more than 12 deep"),
    "a list that holds itself": ("head: &a [*a]", "an anchor"),
    "a bomb of anchors": ("a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]", "an anchor"),
    "a tag": ("head: !!python/object:os.system {}", "the tag tag:yaml.org,2002:python"),
    "a date that is none": ("name: 2020-13-45", "month must be in 1..12"),
    "an integer of 5,000 digits": ("head: {k: " + "9" * 5_000 + "}", "a number of 5,000 digits"),
    "a hexadecimal one": ("head: {k: 0x" + "f" * 5_000 + "}", "a number of 5,002 digits"),
    "a key twice": ("head: {k: 5, k: 500}", "the key 'k' twice"),
    "another encoding": (b"\xff\xfen\x00", "can't decode byte 0xff"),
    "too long": ("# " + "x" * 300_000, "more than 262,144 characters"),
}


@pytest.mark.parametrize("what", HOSTILE_YAML)
@pytest.mark.timeout(10)
def test_a_hostile_config_is_one_sentence(tmp_path, what):
    written, why = HOSTILE_YAML[what]
    path = tmp_path / "mine.yaml"
    path.write_bytes(written if isinstance(written, bytes) else written.encode())
    with pytest.raises(BadOption, match=r"wanted valid YAML \(.*" + why) as caught:
        Config.load(path)
    assert len(str(caught.value)) < 600 and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["[" * 50_000, "9" * 5_000, "&a [*a]", "2020-13-45"])
@pytest.mark.timeout(10)
def test_a_hostile_setting_is_one_sentence(value):
    with pytest.raises(BadOption) as caught:
        Config.load("tiny").override({"head.k": value})
    assert len(str(caught.value)) < 300
