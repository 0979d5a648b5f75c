"""Every option of the method, its default, and what it means.

The frozen dataclasses below are the only place where a default is written. A YAML file overrides them; an unknown key
is an error; a test checks that every field is read somewhere. Configs that come with the package are presets. A file
may start from a preset (``extends: default``) and may name the data it is for (``task``, read by `datasets.hest`);
neither is an option. Switches that restore the behaviour of the released code (docs/paper/deviations.md) are marked
"Released:". Past 300 lines because it is one thing: all options in one list.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
import typing
from dataclasses import dataclass, field
from importlib import resources
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import yaml

from cmrcnet.errors import BadOption, MissingInput, UnknownName
from cmrcnet.slides.slide import PatchScale


def _require(ok: bool, option: str, got: object, want: str) -> None:
    if not ok:
        raise BadOption(option, got, want)


def _check(config: object, option: str, ok: bool, want: str) -> None:
    """Check a field of a part of the config (`TrainConfig`: ``train.``), or of the whole by its dotted name."""
    part = type(config).__name__.removesuffix("Config").lower()
    _require(ok, f"{part}.{option}".lstrip("."), attrgetter(option)(config), want)


@dataclass(frozen=True, kw_only=True)
class PanelConfig:
    """Which genes the gene encoder sees, and how counts become expression."""

    kind: Literal["hvg", "variance", "shared", "list"] = "hvg"
    """hvg: union over sections of the most variable genes; variance: the `n_hvg` genes of largest variance within
    sections; shared: every gene measured in all; list: `genes`."""
    n_hvg: int = 1000
    """Highly variable genes taken from each section before the union; or, with "variance", in all."""
    genes: tuple[str, ...] = ()
    """The panel itself, when kind is "list"."""
    target_sum: float | Literal["median"] = 10_000.0
    """Library size that every spot is scaled to before log1p. Released: "median", each section's own median."""
    target: Literal["log", "pearson"] = "log"
    """What counts become. log: log1p at one library size; pearson: analytic Pearson residuals within each section
    (`genes.scaling`), which are dense."""
    standardize: Literal["section", "training"] = "section"
    """Whose mean and deviation a continuous table is standardised by: each section's own, or that of all training
    locations."""
    zero_replacement: float = 0.01
    """Smallest share of a table of proportions: 0, whose logarithm would not exist, and every share below it count as
    it (`genes.scaling`)."""
    sections: Literal["training", "all"] = "training"
    """Sections that choose the panel. Released: "all", the test section included; reports say that the panel leaks."""
    controls: Literal["drop", "keep"] = "drop"
    """Blank, negative-probe and ambiguous features. Released: "keep"."""
    candidates: Literal["measured", "listed"] = "measured"
    """Genes that the panel may hold. measured: those that every section measures, where a whole-transcriptome section
    measures what it does not list as 0; listed: those that every section lists (released)."""

    def __post_init__(self) -> None:
        _check(self, "n_hvg", self.n_hvg >= 1, "a number of genes, 1 or more")
        _check(self, "target_sum", self.target_sum == "median" or self.target_sum > 0, "a sum above 0")
        _check(self, "zero_replacement", 0 < self.zero_replacement < 0.5, "a share above 0 and below 0.5")
        _check(self, "genes", self.kind != "list" or len(self.genes) > 0, "at least one gene when kind is list")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network."""

    encoder: str = "efficientnet-lite0"
    """Image encoder: a name from `cmrcnet encoders`, or timm:NAME, or hf-hub:ORG/NAME; or external:NAME:WIDTH, whose
    vectors of WIDTH numbers you computed elsewhere and give with each slide (one scale)."""
    weights: str = "pretrained"
    """pretrained; random; random-released (drawn as by the released code); or the path of a local safetensors file."""
    blocks: tuple[int, ...] = ()
    """Encoder blocks whose tokens are used, counted from 0, joined along the feature axis; empty: the last output."""
    train_encoder: bool = False
    """Train the encoder too (a GPU's work, unless `trained_blocks` are few). Otherwise its tokens are computed once and
    cached."""
    trained_blocks: int | None = None
    """With `train_encoder`: how many of its last blocks are trained. What is below them stays as it is, and its output
    is computed once and cached, for each symmetry that `train.augment` draws. Nothing: the whole encoder is trained."""
    encoder_depth: int | None = None
    """Number of transformer blocks built, when not the encoder's own. Released: 8."""
    encoder_heads: int | None = None
    """Attention heads of each transformer block, when not the encoder's own. Released: 8."""
    standardize_tokens: bool = True
    """Shift and scale each token feature by its mean and deviation over the training spots (frozen encoders only)."""
    pool: Literal["mean", "components"] = "mean"
    """Input of the image head: the mean token (the paper), or the 256 principal components of all tokens concatenated,
    which keeps scales apart."""
    embedding_dim: int = 256
    """Length of the image and gene embeddings."""
    head_dropout: float = 0.1
    """Dropout of both projection heads."""
    similarity: Literal["cosine", "dot"] = "cosine"
    """Geometry of the contrastive loss. Released: dot in training, though cosine in retrieval."""
    temperature: float = 1.0
    """Divides the logits and multiplies the soft targets."""
    targets: Literal["soft", "identity"] = "soft"
    """Contrastive targets: BLEEP's soft ones, or the pair itself. Soft targets are multiplied by the temperature: with
    cosine similarity and a low temperature they are flat, and the loss stays at ln(batch)."""
    second_targets: Literal["softmax", "transpose"] = "softmax"
    """Targets of the gene-to-image direction. Released: transpose, whose rows do not sum to 1."""
    reconstruct: Literal["image", "gene", "tokens", "expression", "none"] = "image"
    """image, gene: the embedding that the fused tokens must reconstruct; tokens: the image tokens behind the image
    head's first layer, which the fusion then shares; expression: the expression, from the image embedding alone; none
    leaves the contrastive loss alone."""
    reconstruction_loss: Literal["mse", "cosine"] = "mse"
    """How the reconstruction is compared with its target."""
    detach_target: bool = False
    """Keep the reconstruction loss from moving its own target. With a frozen encoder the loss then reaches neither
    head and changes nothing, so the default is false, as in the released code."""
    total: Literal["batch", "sample"] = "batch"
    """Where the total takes the logarithm of the contrastive loss: log(1 + l) of the batch's mean, or the mean of
    log(1 + l) of its samples (released)."""
    mask_rate: float = 0.5
    """Share of the image tokens hidden from the reconstruction (see `mask_rate_is`)."""
    mask_rate_is: Literal["hidden", "kept"] = "hidden"
    """What `mask_rate` counts. Released: kept."""
    mask_unit: Literal["token", "scalar"] = "token"
    """Hide whole tokens, or single features. Released: scalar."""
    mask_seeded_in_validation: bool = True
    """The same masks at every validation. Released: false."""
    gene_tokens: int = 8
    """Tokens that the self-normalising network makes of a spot's expression."""
    fusion_dim: int = 256
    """Width of image and gene tokens in the fusion."""
    fusion_dropout: float = 0.25
    """AlphaDropout of the self-normalising network."""
    gene_tokens_init: Literal["lecun", "torch"] = "lecun"
    """First weights of the self-normalising network: normal of variance 1 / genes with a bias of 0 (Klambauer et al.,
    2017), or torch's own for a linear layer (released)."""
    block_dropout: float = 0.0
    """Dropout behind the self-attention and in the MLP of each fusion block. Released: 0.1."""
    query_key_dropout: float = 0.0
    """Dropout of the projected queries and keys in the residual cross-attention. Released: 0.25."""
    cross_heads: int = 4
    """Heads of the first cross-attention."""
    fusion_heads: int = 8
    """Heads of the self-attention in each fusion block."""
    fusion_blocks: int = 2
    """Number of fusion blocks."""
    share_fusion_blocks: bool = False
    """Use one block's weights for all of them. Released: true."""

    def __post_init__(self) -> None:
        _check(self, "mask_rate", 0 <= self.mask_rate <= 1, "a share in [0, 1]")
        _check(self, "temperature", self.temperature > 0, "a number above 0")
        for name in ("head_dropout", "fusion_dropout", "block_dropout", "query_key_dropout"):
            _check(self, name, 0 <= getattr(self, name) < 1, "a share in [0, 1)")
        for name in ("embedding_dim", "gene_tokens", "fusion_dim", "cross_heads", "fusion_heads", "fusion_blocks"):
            _check(self, name, getattr(self, name) >= 1, "a whole number, 1 or more")
        alone = self.train_encoder or self.trained_blocks is None
        _check(self, "trained_blocks", alone, "nothing, without train_encoder")
        fits = self.pool == "mean" and self.fusion_dim == self.embedding_dim
        want = "another, unless pool is mean and fusion_dim is embedding_dim: the fusion shares the image head's layer"
        _check(self, "reconstruct", self.reconstruct != "tokens" or fits, want)
        for name in ("encoder_depth", "encoder_heads", "trained_blocks"):
            value = getattr(self, name)
            _check(self, name, value is None or value >= 1, "a whole number, 1 or more, or nothing")
        _check(self, "blocks", all(block >= 0 for block in self.blocks), "block numbers, 0 or more")
        for heads in ("cross_heads", "fusion_heads"):
            _check(
                self, heads, self.fusion_dim % getattr(self, heads) == 0, f"a divisor of fusion_dim ({self.fusion_dim})"
            )


MOST_SUB_WINDOWS = 16
"""Along a side of a spot, at most: cells of the first maps are 4 um wide."""


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig:
    """Which features a frozen encoder extracts of a spot and its surroundings. Nothing here uses expression."""

    scales_um: tuple[float, ...] = ()
    """Sides of square patches around a spot, each resized to `patch.size_px`; each becomes one token, the mean of the
    encoder's. Empty: one patch at the config's `patch`, all of the encoder's tokens."""
    method: Literal["auto", "patches", "dense"] = "auto"
    """patches: each location's patch runs through the encoder by itself; dense: the encoder sees the slide once a
    scale, and its maps are averaged over each location's square (scales and convolutional encoders only); auto: dense
    where it can be had. A trained model states the one that it was trained with."""
    augmentations: int | tuple[int, ...] = 1
    """Test-time augmentation: of the eight symmetries of a square (D4), how many are encoded and averaged: one number
    for all of `scales_um`, or one a scale, because the pixels of a large square are few (scales only)."""
    neighbourhood_um: float = 0.0
    """Standard deviation of a Gaussian mean over the section's other spots, which gives one more token a scale;
    0: none (scales only)."""
    standardize: Literal["training", "section"] = "training"
    """Shift and scale each feature by its mean and deviation over the training spots, or over the spots of its own
    section, which removes differences of stain and scanner (scales only)."""
    engine: Literal["auto", "torch", "openvino"] = "auto"
    """What computes a frozen encoder. auto: OpenVINO on a CPU, where it is installed (extra `fast`) and can convert the
    encoder, else torch."""
    window_um: float = 0.0
    """Train for maps finer than a spot: a spot is the mean of square sub-windows of this side, which fill the smallest
    of `scales_um`, and `predict --window-um` may ask for them; 0: a spot is not divided. Dense features and
    `target.ranks` only."""

    def __post_init__(self) -> None:
        _check(self, "scales_um", all(side > 0 for side in self.scales_um), "sides above 0 um")
        ways, scales = self.augmentations, len(self.scales_um)
        numbers = ways if isinstance(ways, tuple) else (ways,)
        one_each = not isinstance(ways, tuple) or len(ways) == scales
        want = f"1 to 8, or a list of {scales}, one for each of features.scales_um" if scales else "1 to 8"
        _check(self, "augmentations", one_each and all(1 <= number <= 8 for number in numbers), want)
        _check(self, "neighbourhood_um", self.neighbourhood_um >= 0, "0 or more um")
        if self.window_um:
            count = min(self.scales_um, default=0.0) / self.window_um
            whole = 1 < count <= MOST_SUB_WINDOWS and abs(count - round(count)) < 1e-6
            want = f"0, or the smallest of features.scales_um divided by 2 to {MOST_SUB_WINDOWS}"
            _check(self, "window_um", self.window_um > 0 and whole, want)
            _check(self, "method", self.method != "patches", "auto or dense, with features.window_um")
        if not self.scales_um:
            _check(self, "method", self.method != "dense", "auto or patches, unless features.scales_um lists scales")
            for name, plain in (("augmentations", 1), ("neighbourhood_um", 0.0), ("standardize", "training")):
                value = getattr(self, name)
                _check(self, name, value == plain, f"{plain}, unless features.scales_um lists scales")


@dataclass(frozen=True, kw_only=True)
class TargetConfig:
    """The expression that is learnt and averaged: as measured, or its leading components."""

    ranks: tuple[int, ...] = ()
    """Numbers of leading expression components (`genes.components`: principal components of the panel's expression,
    centred gene by gene within each section). Predictions are the mean over these ranks, added to the mean level of
    the bank's sections. Empty: the expression as it was measured."""
    gene_rank: int = 10
    """Components that the gene encoder sees, when there are `ranks`."""
    depth_weights: bool = False
    """Weight spots by their sequencing depth (`genes.scaling`) where the heads are fitted."""

    def __post_init__(self) -> None:
        _check(self, "ranks", all(rank >= 1 for rank in self.ranks), "numbers of components, 1 or more")
        _check(self, "gene_rank", self.gene_rank >= 1, "a number of components, 1 or more")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How the network is trained."""

    epochs: int = 60
    """Passes over the training spots, at most."""
    batch_size: int = 64
    """Pairs a step; also the number of candidates in the contrastive loss."""
    learning_rate: float = 1e-4
    """Peak AdamW learning rate."""
    final_learning_rate: float = 1e-5
    """Where the cosine schedule ends."""
    schedule_by: Literal["step", "epoch"] = "step"
    """How often the learning rate changes. Released: epoch."""
    weight_decay: float = 1e-3
    """AdamW weight decay."""
    clip_norm: float = 1.0
    """Largest norm of the gradient; 0 clips nothing."""
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    """auto: bf16 or fp16 mixed precision on a GPU, float32 on a CPU; there OpenVINO (`features.engine`) computes frozen
    encoders in bf16 where the CPU has it in hardware."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    augment: bool = True
    """Random flips and right-angle rotations of the patches (of the encoder's token grid, when it is frozen)."""
    validation: Literal["group", "each", "spots", "none"] = "group"
    """What chooses the epoch. group: a whole training patient (or section: see `evaluation.group_by`);
    each: every group in turn (at most 5 splits), by the mean score, for trainings of seconds;
    spots: random spots of the training sections (released); none: the last epoch is kept."""
    select_by: Literal["pearson", "objective"] = "pearson"
    """What the chosen epoch is best in: mean Pearson over the 50 HVG, or the training objective (released)."""
    refit: bool = True
    """After the epoch is chosen, train again on all training sections for that many epochs."""
    validate_every: int = 1
    """Epochs between two validations."""
    ema_decay: float = 0.0
    """Decay of a moving average of the weights; 0: none. Released: 0.999 (it is on; its decay is not known)."""
    ema_used: bool = True
    """Evaluate and keep the averaged weights. Released: false (they are updated and never used)."""
    seed: int = 0
    """Seed of every random choice in training."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "validate_every"):
            _check(self, name, getattr(self, name) >= 1, "a whole number, 1 or more")
        for name in ("learning_rate", "final_learning_rate"):
            _check(self, name, getattr(self, name) > 0, "a number above 0")
        _check(self, "ema_decay", 0 <= self.ema_decay < 1, "a share in [0, 1)")
        _check(self, "clip_norm", self.clip_norm >= 0, "0 or more")
        _check(self, "weight_decay", self.weight_decay >= 0, "0 or more")


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """How retrieved spots, or image features, are turned into a prediction."""

    kind: Literal["retrieval", "ridge", "kernel", "ensemble"] = "retrieval"
    """retrieval: the average over the nearest measured spots (the paper); ridge, kernel: regression of expression
    components on the image features; ensemble: all three, weighted by their validation scores. All but retrieval need
    `target.ranks`."""
    k: int = 50
    """Measured spots averaged for one patch; all of the bank, where it holds fewer."""
    weighting: Literal["mean", "similarity"] = "mean"
    """mean: equal weights; similarity: weights exp(cosine / temperature)."""
    temperature: float = 0.1
    """Of the similarity weights."""
    variance_rescaling: float = 0.0
    """0: predictions of least squared error, which vary less than the truth; 1: each gene's predictions are rescaled to
    the variance of the training spots. Correlations stay the same, errors grow. Needs `target.ranks`."""

    def __post_init__(self) -> None:
        _check(self, "variance_rescaling", 0 <= self.variance_rescaling <= 1, "a share in [0, 1]")
        _check(self, "k", self.k >= 1, "a whole number, 1 or more")
        _check(self, "temperature", self.temperature > 0, "a number above 0")

    def within(self, spots: int) -> HeadConfig:
        """The same head in a bank of so many spots: `k` is at most their number."""
        return dataclasses.replace(self, k=min(self.k, spots))


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How predictions are scored."""

    group_by: Literal["patient", "section"] = "patient"
    """What is left out of training in each fold. Released: section, also where sections share a patient."""
    set_size: int = 50
    """Genes in HEG (highest mean) and in HVG (most variable), chosen on the training sections of each fold."""
    undefined: Literal["skip", "zero"] = "skip"
    """A gene whose correlation is undefined (constant truth or prediction): left out of the mean, or counted as 0
    (released, silently). The number of such genes stands beside every mean."""
    paper_sets: Literal["measured", "panel"] = "measured"
    """Genes among which the protocol `paper` chooses HEG and HVG by the test section's truth: all that are scored, or
    those of the panel (released)."""
    overdispersion: float = 0.0
    """Noise of the counts beyond Poisson's, for the noise ceiling: variance = mean + overdispersion * mean^2. With 0
    the ceiling is an upper bound."""

    def __post_init__(self) -> None:
        _check(self, "set_size", self.set_size >= 1, "a whole number, 1 or more")
        _check(self, "overdispersion", 0 <= self.overdispersion < math.inf, "0 or more; 0 is Poisson noise")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that defines one way of training and predicting.

    Attributes
    ----------
    name : str
        Short name, shown in reports.
    about : str
        One sentence for `cmrcnet presets`.

    Examples
    --------
    >>> import cmrcnet
    >>> config = cmrcnet.Config.load("paper").override({"head.k": 100})
    >>> config.name, config.head.k, config.train.epochs
    ('paper', 100, 60)
    """

    name: str = "default"
    about: str = ""
    patch: PatchScale = field(default_factory=PatchScale)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    panel: PanelConfig = field(default_factory=PanelConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        if self.target.ranks:
            every = "each, with target.ranks: ranks, penalties and weights are chosen on every validation group"
            _check(self, "train.validation", self.train.validation == "each", every)
            _check(self, "train.select_by", self.train.select_by == "pearson", "pearson, with target.ranks")
        else:
            unless = "unless target.ranks is set"
            _check(self, "head.kind", self.head.kind == "retrieval", f"retrieval, {unless}")
            _check(self, "head.variance_rescaling", self.head.variance_rescaling == 0, f"0, {unless}")
            _check(self, "target.depth_weights", not self.target.depth_weights, f"false, {unless}")
            _check(self, "features.window_um", not self.features.window_um, f"0, {unless}")
        mean, on = self.model.pool == "mean", "while model.train_encoder is on"
        if self.model.train_encoder:
            scales = self.features.scales_um
            _check(self, "features.scales_um", not scales, f"none {on}: scales are for frozen encoders")
            _check(self, "model.pool", mean, f"mean {on}")
            _check(self, "target.ranks", not self.target.ranks, f"none {on}")
        if self.model.encoder.startswith("external:"):
            read = "with an external encoder, whose features are read as they are"
            _check(self, "features.scales_um", len(self.features.scales_um) <= 1, f"one scale {read}")
            _check(self, "features.augmentations", self.features.augmentations == 1, f"1 {read}")
            _check(self, "features.method", self.features.method != "dense", f"auto or patches {read}")
            _check(self, "model.blocks", not self.model.blocks, f"[] {read}")
            _check(self, "model.train_encoder", not self.model.train_encoder, f"false {read}")
        standardized = self.model.standardize_tokens
        _check(self, "model.standardize_tokens", mean or not standardized, "false, with model.pool: components")

    @classmethod
    def load(cls, name: str | Path) -> Config:
        """Load a preset by name, or a config of your own by the path of its YAML file.

        Raises
        ------
        UnknownName, MissingInput, BadOption
        """
        text, own = str(name), str(name).endswith(_ENDINGS)
        settings = _settings(_written(text, own), text)
        return cls.from_dict(settings if own else {"name": text} | settings, where=text if own else f"preset {text}")

    @staticmethod
    def parts_beside_settings(name: str | Path) -> dict[str, Any]:
        """Read the keys of a config's file that are no options: `extends`, the preset it starts from, and `task`.

        Raises
        ------
        UnknownName, MissingInput, BadOption
        """
        values = _written(str(name), str(name).endswith(_ENDINGS))
        return {key: values[key] for key in _NOT_OPTIONS if key in values}

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str = "the config") -> Config:
        """Build from nested plain values; unknown keys and wrong types are errors."""
        return _build(cls, values, where, "")

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values that `from_dict` and JSON understand."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def override(self, settings: dict[str, Any]) -> Config:
        """Replace single fields by dotted key: ``config.override({"head.k": 100})``. Text is read as YAML."""
        values = self.to_dict()
        for key, value in settings.items():
            *parents, last = key.split(".")
            inner = values
            for parent in parents:
                if not isinstance(inner.get(parent), dict):
                    raise UnknownName.option(key, sorted(values), "The setting")
                inner = inner[parent]
            if isinstance(value, str):
                try:
                    value = parse_yaml(value)
                except yaml.YAMLError:
                    pass  # plain text
                except ValueError as error:
                    raise BadOption("the setting", value[:40], f"a plain value ({error})") from error
            inner[last] = value
        return Config.from_dict(values, where="The setting")


def shipped_presets() -> tuple[str, ...]:
    """Names of the presets that come with the package, sorted."""
    folder = resources.files("cmrcnet") / "presets"
    return tuple(sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".yaml")))


_NOT_OPTIONS, _ENDINGS = ("extends", "task"), (".yaml", ".yml")


def _written(name: str, own: bool) -> dict[str, Any]:
    """The content of the user's own file, or of a preset."""
    if own:
        path = Path(name)
        if not path.is_file():
            raise MissingInput(path, "The config", "run `cmrcnet presets` for those that ship")
        written = path.read_bytes()
    elif name in shipped_presets():
        written = (resources.files("cmrcnet") / "presets" / f"{name}.yaml").read_bytes()
    else:
        hint = "A config of your own is given as a path that ends in .yaml."
        raise UnknownName("preset", name, shipped_presets(), hint)
    try:
        values = parse_yaml(written.decode()) or {}
    except (yaml.YAMLError, ValueError) as error:  # also of its encoding
        raise BadOption("config", name, f"valid YAML ({str(error).splitlines()[0]})") from error
    _require(isinstance(values, dict), "config", name, "a YAML file of keys and values")
    return values


def _settings(values: dict[str, Any], where: str) -> dict[str, Any]:
    """A file's own settings over those of the preset that it extends."""
    own = {key: value for key, value in values.items() if key not in _NOT_OPTIONS}
    if "extends" not in values:
        return own
    below = _written(str(values["extends"]), own=False)
    _require("extends" not in below, "extends", f"{values['extends']} in {where}", "a preset that extends no other")
    merged = {key: value for key, value in below.items() if key not in _NOT_OPTIONS}
    for key, value in own.items():
        merged[key] = (
            {**merged[key], **value} if isinstance(merged.get(key), dict) and isinstance(value, dict) else value
        )
    return merged


def parse_yaml(text: str) -> Any:
    """Read plain YAML: numbers, text, lists and mappings, without what could take all memory or never end.

    Raises
    ------
    yaml.YAMLError
        It is no YAML.
    ValueError
        It is too long or nested too deeply, has an anchor, a tag, a key twice, a number of very many digits, or a date
        that does not exist.

    Examples
    --------
    >>> parse_yaml("[1, 2.5, word]")
    [1, 2.5, 'word']
    """
    if len(text) > _LONGEST_YAML:
        raise ValueError(f"it has more than {_LONGEST_YAML:,} characters")
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST_YAML:
            raise ValueError(f"it is nested more than {_DEEPEST_YAML} deep")
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ValueError("it has an anchor (& or *), which is not used here; write the value out")
        if getattr(event, "tag", None):
            raise ValueError(f"it has the tag {str(event.tag)[:40]}, which is not used here; leave it out")
        if isinstance(event, yaml.ScalarEvent) and event.implicit[0] and _LONG_NUMBER.fullmatch(event.value):
            raise ValueError(f"it has a number of {len(event.value):,} digits")
    return _UniqueKeys(text).get_single_data()


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        values = super().construct_mapping(node, deep)
        if len(values) != len(node.value):
            keys = [str(key.value) for key, _ in node.value]
            raise ValueError(f"it has the key {next(key for key in keys if keys.count(key) > 1)!r} twice")
        return values


_LONGEST_YAML, _DEEPEST_YAML = 1 << 18, 12
_LONG_NUMBER = re.compile(r"[-+]?(0[xXob])?[0-9a-fA-F_:.]{40,}")


def _build(kind: type, values: dict[str, Any], where: str, prefix: str) -> Any:
    fields = {f.name: f for f in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    _require(isinstance(values, dict), prefix.rstrip(".") or where, values, "keys and values")
    given = {}
    for key, value in values.items():
        if key not in fields:
            raise UnknownName.option(f"{prefix}{key}", sorted(fields), where)
        hint = hints[key]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            given[key] = _build(hint, value, where, f"{prefix}{key}.")
        else:
            given[key] = _fit(value, hint, f"{prefix}{key}")
    return kind(**given)


def _fit(value: Any, hint: Any, key: str) -> Any:
    """Check one value against its annotation; numbers in exponent form arrive from YAML as text."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        for option in arguments:
            try:
                return _fit(value, option, key)
            except BadOption:
                continue
        raise BadOption(key, value, f"one of {', '.join(str(a) for a in arguments)}")
    if origin is Literal:
        _require(
            value in arguments and not isinstance(value, bool), key, value, f"one of {', '.join(map(str, arguments))}"
        )
        return value
    if origin is tuple:
        _require(isinstance(value, list | tuple), key, value, "a list")
        return tuple(_fit(item, arguments[0], key) for item in value)
    if hint is type(None):
        _require(value is None, key, value, "nothing")
        return None
    if hint is float:
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                raise BadOption(key, value, "a number") from None
        _require(isinstance(value, int | float) and not isinstance(value, bool), key, value, "a number")
        return float(value)
    if hint is int:
        _require(isinstance(value, int) and not isinstance(value, bool), key, value, "a whole number")
        return value
    _require(isinstance(value, hint), key, value, {bool: "true or false", str: "text"}.get(hint, str(hint)))
    return value
