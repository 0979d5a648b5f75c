"""Parts of `open_claims`: each predicts expression components of spots from frozen features, in several settings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from scipy.spatial.distance import cdist
from torch import Tensor, nn
from torch.nn.functional import log_softmax, normalize, softplus

import cmrcnet
from cmrcnet.config import Config
from cmrcnet.evaluation.protocol.folds import Fold
from cmrcnet.features.extract import extract
from cmrcnet.features.spec import FeatureSpec
from cmrcnet.features.tokens import SectionTokens
from cmrcnet.genes.components import loadings_of
from cmrcnet.genes.gene_sets import GenePanel, gene_sets
from cmrcnet.genes.scaling import library_sizes, pearson_residuals
from cmrcnet.genes.spatial_stats import pearson_per_gene
from cmrcnet.heads.ensemble import choose, component_weights_of, fit_ensemble
from cmrcnet.heads.pca import fit_pca
from cmrcnet.heads.ridge import SETTINGS, kernel_path, ridge_path
from cmrcnet.models.cmrcnet import ProjectionHead
from cmrcnet.models.losses import contrastive_loss, total_loss
from cmrcnet.slides.section import Cohort
from cmrcnet.training.data import TrainingData, steps_in
from cmrcnet.training.fit import new_encoder
from cmrcnet.training.loop import cosine_rate, train_epochs
from cmrcnet.training.validation import validation_splits

CONFIG = Config.load("default")
View = tuple[float, ...]
"""Standard deviations in um of the Gaussian neighbourhood means beside a spot's own tokens."""
DEFAULT: View = (CONFIG.features.neighbourhood_um,)
RADII: tuple[View, ...] = (DEFAULT, (300.0,), (500.0,), (150.0, 400.0))
MEMBERS = ("retrieval", "ridge", "kernel")
WITHOUT = MEMBERS[1:]
SPREADS_UM = (0.0, 100.0, 150.0, 250.0)
"""Of predictions over the slide."""
Part = tuple[np.ndarray, np.ndarray]
"""Predicted components of training spots, each without its group, and of test spots: (settings, spots, rank) each."""


class FoldData:
    """Features, components and truth of an outer fold; rows are the training spots, then the test spots."""

    def __init__(self, cohort: Cohort, fold: Fold, config: Config, cache: cmrcnet.TokenCache) -> None:
        self.config, encoder = config, new_encoder(config)
        train, self.fold = cohort.only(fold.train).in_order(), fold
        self.data = TrainingData.collect(train, config, encoder, cache)
        sections = [cohort.read(name) for name in (*self.data.sections, *fold.test)]
        self.spec = FeatureSpec.of(config, encoder)
        raw = replace(self.spec, neighbourhood_um=0.0, standardize="training")
        self.scales = [extract(encoder, s.slide, s.spots.location_px, raw, cache=cache) for s in sections]
        self.locations_um = [s.spots.location_px * s.slide.mpp for s in sections]
        self.section_of = np.repeat([s.name for s in sections], [len(s.spots) for s in sections])
        self.n, panel = len(self.data), self.data.panel
        scores, scored = self.data.scores, self.data.scored
        assert panel is not None and scores is not None and scored is not None
        self.scores, self.rank = scores, scores.shape[1]
        self.splits = [(split.rest, np.sort(split.ids)) for split in validation_splits(self.data, config)]
        genes = gene_sets(train, panel.scaling, config.evaluation.set_size, svg=False)["HVG"]
        self.test_truth = {s.name: GenePanel(genes, panel.scaling).select(s) for s in sections if s.name in fold.test}
        self.truth, self.loadings = np.asarray(scored.todense()), loadings_of(scores, scored)
        self.component_weights = component_weights_of(config.target.ranks, self.rank)
        measured = [s for s in sections if s.name in self.data.sections]
        self.library = np.concatenate([library_sizes(s.counts) for s in measured]).astype(np.float32)
        self.expression = np.concatenate([panel.select(s).toarray() for s in measured])
        self._parts: dict[tuple[str, int], Part] = {}
        self._features: dict[tuple[View, float], np.ndarray] = {}

    def features(self, view: View = DEFAULT, share: float = 1.0) -> np.ndarray:
        """Principal components of the spots' tokens, those of the neighbourhoods times `share`."""
        if (view, share) not in self._features:
            tokens = np.concatenate([self._tokens(number, view, share) for number in range(len(self.scales))])
            self._features[view, share] = fit_pca(tokens[: self.n], 0).apply(tokens)
        return self._features[view, share]

    def _tokens(self, number: int, view: View, share: float) -> np.ndarray:
        scales, where = self.scales[number], self.locations_um[number]
        own = SectionTokens(scales, where, replace(self.spec, neighbourhood_um=0.0)).take(slice(0, len(scales)))
        near = [replace(self.spec, neighbourhood_um=radius) for radius in view]
        both = [SectionTokens(scales, where, spec).take(slice(0, len(scales))) for spec in near]
        return np.concatenate([own, *(share * tokens[:, own.shape[1] :] for tokens in both)], axis=1)

    def means_around(self, values: np.ndarray, spread_um: float, own: bool = True) -> np.ndarray:
        """Gaussian means of values (..., rows, columns) over each section, of the first rows or of the last ones."""
        names = self.section_of[: self.n] if values.shape[-2] == self.n else self.section_of[self.n :]
        where = np.concatenate(self.locations_um)
        where = where[: self.n] if values.shape[-2] == self.n else where[self.n :]
        found = np.empty_like(values)
        for name in dict.fromkeys(names.tolist()):
            rows = np.flatnonzero(names == name)
            share = np.exp(-(cdist(where[rows], where[rows]) ** 2) / (2 * spread_um**2))
            share = share if own else share - np.eye(len(rows))
            share /= np.maximum(share.sum(axis=1, keepdims=True), 1e-9)
            found[..., rows, :] = share.astype(np.float32) @ values[..., rows, :]
        return found

    @cached_property
    def factor_scores(self) -> np.ndarray:
        """Scores (spots, rank) of a negative binomial factor model of the training counts (as GLM-PCA)."""
        counts, offset, inverse = self.counts, torch.log(torch.from_numpy(self.library))[:, None], self.dispersion
        level = self.levels(np.arange(self.n))
        scores = nn.Parameter(torch.from_numpy(self.scores.copy()))
        loadings = nn.Parameter(torch.from_numpy(loadings_of(self.scores, self.expression)))
        optimizer = torch.optim.Adam([scores, loadings], lr=0.02)
        for _ in range(120):
            log_mean = offset + level + scores @ loadings
            loss = negative_binomial(counts, log_mean, inverse).sum(dim=1).mean()
            loss = loss + 0.5 * scores.square().sum(dim=1).mean() + 0.5 * loadings.square().sum() / self.n
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        found = scores.detach().numpy()
        for name in self.data.sections:
            rows = np.flatnonzero(self.section_of[: self.n] == name)
            found[rows] -= found[rows].mean(axis=0)
        return found

    @cached_property
    def residual_scores(self) -> np.ndarray:
        """Principal components (spots, rank) of the analytic Pearson residuals of the training counts."""
        found = np.empty_like(self.expression)
        for name in self.data.sections:
            rows = np.flatnonzero(self.section_of[: self.n] == name)
            found[rows] = pearson_residuals(sparse.csr_matrix(self.counts[rows].numpy()))
            found[rows] -= found[rows].mean(axis=0)
        left, values, _ = np.linalg.svd(found, full_matrices=False)
        return left[:, : self.rank] * values[: self.rank] / values[0] * math.sqrt(self.n)

    @cached_property
    def counts(self) -> Tensor:
        """Counts of the panel's genes in the training spots."""
        return torch.from_numpy(np.rint(np.expm1(self.expression) * self.library[:, None] / 1e4).astype(np.float32))

    def levels(self, rows: np.ndarray) -> Tensor:
        """Log share of each gene in its section's counts, for training rows: (rows, genes)."""
        found, names = torch.empty(len(rows), self.counts.shape[1]), self.section_of[rows]
        for name in dict.fromkeys(names.tolist()):
            here = np.flatnonzero(names == name)
            shares = (self.counts[rows[here]].sum(dim=0) + 0.5) / float(self.library[rows[here]].sum())
            found[here] = torch.log(shares)
        return found

    def means(self, rows: np.ndarray) -> Tensor:
        """Mean expression of each gene in its section, for training rows: (rows, genes)."""
        table = pd.DataFrame(self.expression[rows])
        return torch.from_numpy(table.groupby(self.section_of[rows]).transform("mean").to_numpy())

    @cached_property
    def dispersion(self) -> Tensor:
        """Inverse dispersion r of each gene by moments: variance = mean + mean^2 / r."""
        mean = torch.from_numpy(self.library)[:, None] * torch.exp(self.levels(np.arange(self.n)))
        over = ((self.counts - mean).square() - mean).sum(dim=0) / mean.square().sum(dim=0)
        return 1 / over.clamp(0.01, 10.0)

    def cross(self, fit: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Part:
        """Fit without each group, and on all; `fit(rows, others)` predicts the others: (settings, others, rank)."""
        parts = [fit(rest, ids) for rest, ids in self.splits]
        held_in = np.empty((len(parts[0]), self.n, self.rank), np.float32)
        for (_, ids), found in zip(self.splits, parts, strict=True):
            held_in[:, ids] = found
        return held_in, fit(np.arange(self.n), np.arange(self.n, len(self.section_of)))

    def part(self, name: str, seed: int) -> Part:
        """A part by its name; those without a random choice are computed once."""
        seed = seed if PARTS[name][1] else 0
        if (name, seed) not in self._parts:
            self._parts[name, seed] = PARTS[name][0](self, seed)
        return self._parts[name, seed]

    def forget(self, seed: int) -> None:
        """Forget what is of another seed, and what is many predictions and quickly made."""
        parts = self._parts.items()
        self._parts = {
            key: part for key, part in parts if len(part[0]) < 30 and (not PARTS[key[0]][1] or key[1] == seed)
        }

    def run(self, names: tuple[str, ...], seed: int) -> tuple[float, dict[str, float], dict[str, Any]]:
        """Held-in score of the parts together, the score of each test section, and what was chosen."""
        how = self.truth, self.loadings, self.section_of[: self.n]
        held_in, test, facts = {}, {}, {}
        for name in names:
            tried, of_test = self.part(name, seed)
            number, score = choose(tried, self.component_weights, *how)
            held_in[name], test[name], facts[name] = tried[number], of_test[number], number
        guess = self.component_weights * test[names[0]]
        if len(names) > 1:
            ensemble, score = fit_ensemble(held_in, self.component_weights, self.scores, *how)
            guess = ensemble.combine(test)
            facts = {name: [number, round(ensemble.weights[name], 3)] for name, number in facts.items()}
        expression, of = guess @ self.loadings, self.section_of[self.n :]
        scores = {
            name: float(np.nanmean(pearson_per_gene(truth, expression[of == name])))
            for name, truth in self.test_truth.items()
        }
        return score, scores, facts


def negative_binomial(counts: Tensor, log_mean: Tensor, inverse: Tensor) -> Tensor:
    """Minus log likelihood of counts but for what the mean does not change; variance = mean + mean^2 / inverse."""
    return (counts + inverse) * torch.log(inverse + torch.exp(log_mean)) - counts * log_mean


def zero_inflated(counts: Tensor, log_mean: Tensor, inverse: Tensor, logit: Tensor) -> Tensor:
    """`negative_binomial` with an additional share of zeros, ``sigmoid(logit)``, of each gene."""
    nothing = inverse * (torch.log(inverse) - torch.log(inverse + torch.exp(log_mean)))
    zero = torch.logaddexp(logit, nothing) - softplus(logit)
    some = negative_binomial(counts, log_mean, inverse) - inverse * torch.log(inverse) + softplus(logit)
    return torch.where(counts == 0, -zero, some)


def ridge(fold: FoldData, seed: int, view: View = DEFAULT, share: float = 1.0, targets: Any = None) -> Part:
    """Ridge regression of the components, or of other targets, which are then mapped back to components."""
    return _regression(fold, lambda x, y, weights: ridge_path(x, y, weights=weights), view, share, targets)


def kernel(fold: FoldData, seed: int, view: View = DEFAULT, share: float = 1.0, targets: Any = None) -> Part:
    """Kernel ridge regression, likewise; a variant has the width that was best held in for the default."""
    settings = SETTINGS
    if (view, share, targets) != (DEFAULT, 1.0, None):
        width = SETTINGS[fold.run(("kernel",), 0)[2]["kernel"]][0]
        settings = [each for each in SETTINGS if each[0] == width]
    return _regression(fold, lambda x, y, weights: kernel_path(x, y, 0, weights, settings), view, share, targets)


def _regression(fold: FoldData, path: Callable[..., Any], view: View, share: float, targets: Any) -> Part:
    features, wanted, back = fold.features(view, share), fold.scores, np.eye(fold.rank, dtype=np.float32)
    if targets is not None:
        wanted = targets(fold)
        back = np.linalg.lstsq(wanted, fold.scores, rcond=None)[0].astype(np.float32)

    def fit(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        fitted = path(features[rows], wanted[rows], fold.data.weights[rows])
        return np.stack([each.predict(features[others]) @ back for each in fitted])

    return fold.cross(fit)


def snapshots(
    module: nn.Module,
    batches: Callable[[int], Iterator[Any]],
    loss: Callable[[Any], Tensor],
    predict: Callable[[], np.ndarray],
    seed: int,
    *,
    epochs: int = CONFIG.train.epochs,
    every: int = CONFIG.train.validate_every,
    rate: float = CONFIG.train.learning_rate,
    decay: float = CONFIG.train.weight_decay,
) -> np.ndarray:
    """Train, and predict after every so many epochs: (snapshots, rows, rank)."""
    torch.manual_seed(seed)  # dropout
    found, plan = [], replace(CONFIG.train, learning_rate=rate)

    def after_epoch(epoch: int, losses: Tensor) -> bool:
        if epoch % every == 0:
            module.eval()
            with torch.inference_mode():
                found.append(predict())
        return False

    train_epochs(
        module,
        torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=decay, fused=True),
        batches,
        loss,
        range(epochs),
        learning_rate=lambda epoch, _: cosine_rate(plan, epoch / epochs),
        clip=lambda: nn.utils.clip_grad_norm_(module.parameters(), plan.clip_norm),
        after_epoch=after_epoch,
    )
    return np.stack(found)


def shuffled(fold: FoldData, rows: np.ndarray, seed: int, kind: str, epoch: int) -> Iterator[np.ndarray]:
    """Batches of an epoch: mixed; of one section each ("section"); or mixed, of the same sizes as those ("sizes")."""
    rng, size = np.random.default_rng([seed, epoch]), CONFIG.train.batch_size
    if kind == "mixed":
        yield from np.array_split(rng.permutation(rows), steps_in(len(rows), size))
        return
    names = fold.section_of[rows]
    parts = []
    for name in dict.fromkeys(names.tolist()):
        mine = rng.permutation(rows[names == name])
        parts += np.array_split(mine, steps_in(len(mine), size))
    parts = [parts[i] for i in rng.permutation(len(parts))]
    if kind == "sizes":
        parts = np.split(rng.permutation(rows), np.cumsum([len(part) for part in parts])[:-1])
    yield from parts


def towers(
    fold: FoldData, seed: int, view: View = DEFAULT, batch: str = "mixed", hard: float = 0.0, around_um: float = 0.0
) -> Part:  # fmt: skip
    """Contrastive towers and retrieval: the default's, without its reconstruction.

    `hard`: negatives count by exp(hard * cosine of their expression), mean 1. `around_um`: the gene tower sees the mean
    expression of the other spots around as well.
    """
    config, features = fold.config, torch.from_numpy(fold.features(view))
    seen = torch.from_numpy(fold.scores[:, : config.target.gene_rank])
    inputs = seen
    if around_um:
        inputs = torch.cat([seen, torch.from_numpy(fold.means_around(seen.numpy(), around_um, own=False))], dim=1)
    values = torch.from_numpy(fold.scores)
    model = config.model

    def fit(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        torch.manual_seed(seed)
        image = ProjectionHead(features.shape[1], model.embedding_dim, model.head_dropout)
        gene = ProjectionHead(inputs.shape[1], model.embedding_dim, model.head_dropout)

        def loss(ids: np.ndarray) -> Tensor:
            i, g = image(features[ids]), gene(inputs[ids])
            if not hard:
                return total_loss(contrastive_loss(i, g, temperature=model.temperature, targets="identity"), None)
            direction = normalize(seen[ids], dim=1)
            off = 1 - torch.eye(len(ids))
            more = torch.exp(hard * direction @ direction.T) * off
            more = torch.log(more * off.sum(dim=1, keepdim=True) / more.sum(dim=1, keepdim=True) + torch.eye(len(ids)))
            logits = normalize(g, dim=1) @ normalize(i, dim=1).T / model.temperature
            both = [log_softmax(each + more, dim=1).diagonal() for each in (logits, logits.T)]
            return total_loss(-(both[0] + both[1]) / 2, None)

        def predict() -> np.ndarray:
            near = normalize(image(features[others]), dim=1) @ normalize(gene(inputs[rows]), dim=1).T
            best, which = near.topk(min(config.head.k, len(rows)), dim=1, sorted=False)
            share = (best / config.head.temperature).softmax(dim=1)
            return torch.einsum("qk,qkr->qr", share, values[rows][which]).numpy()

        batches = partial(shuffled, fold, rows, seed, batch)
        return snapshots(nn.ModuleList([image, gene]), batches, loss, predict, seed)

    return fold.cross(fit)


def likelihood(fold: FoldData, seed: int, kind: str, hidden: int = 0) -> Part:
    """A reduced-rank head of all the panel's genes, linear or with a hidden layer, by squared error or a likelihood."""
    features = torch.from_numpy(fold.features())
    start = torch.from_numpy(loadings_of(fold.scores, fold.expression))
    components = fold.data.components
    assert components is not None
    directions, offset = torch.from_numpy(components.directions), torch.log(torch.from_numpy(fold.library))[:, None]
    expression, weights = torch.from_numpy(fold.expression), torch.from_numpy(fold.data.weights)[:, None]

    def fit(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        torch.manual_seed(seed)
        widths = [features.shape[1], *([hidden] if hidden else []), fold.rank]
        layers: list[nn.Module] = [nn.Dropout(0.2)]
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.GELU()]
        head = nn.Sequential(*layers[:-1])
        with torch.no_grad():
            last: Any = head[-1]
            last.weight.mul_(0.1)
        loadings, logit = nn.Parameter(start.clone()), nn.Parameter(torch.full((start.shape[1],), -3.0))
        level = torch.zeros(fold.n, start.shape[1])
        level[rows] = fold.levels(rows) if kind != "squares" else fold.means(rows)
        usual = level[rows].mean(dim=0)
        module = nn.ModuleList([head, nn.ParameterList([loadings, logit])])

        def loss(ids: np.ndarray) -> Tensor:
            guess = level[ids] + head(features[ids]) @ loadings
            if kind == "squares":
                return (weights[ids] * (expression[ids] - guess).square()).sum(dim=1).mean()
            of = fold.counts[ids], guess + offset[ids], fold.dispersion
            each = negative_binomial(*of) if kind == "nb" else zero_inflated(*of, logit)
            return each.sum(dim=1).mean()

        def predict() -> np.ndarray:
            guess = usual + head(features[others]) @ loadings
            return ((guess if kind == "squares" else torch.log1p(1e4 * torch.exp(guess))) @ directions).numpy()

        batches = partial(shuffled, fold, rows, seed, "mixed")
        return snapshots(module, batches, loss, predict, seed, epochs=24, rate=2e-3, decay=0.01)

    return fold.cross(fit)


class Spatial(nn.Module):
    """Self-attention over the locations of a section, less to those farther away: a slope of its own for each head."""

    def __init__(self, width: int, rank: int, layers: int, dim: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Dropout(0.1), nn.Linear(width, dim))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2 * layers + 1))
        self.attention = nn.ModuleList(nn.MultiheadAttention(dim, heads, batch_first=True) for _ in range(layers))
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)) for _ in range(layers)
        )
        self.slope = nn.Parameter(torch.linspace(-1.0, 2.0, heads))
        self.leave, self.dropout = nn.Linear(dim, rank), nn.Dropout(0.2)

    def forward(self, features: Tensor, pitches: Tensor, alone: bool) -> Tensor:
        """Components (spots, rank) of features (spots, width); `alone`: each spot sees only itself."""
        bias = -softplus(self.slope)[:, None, None] * pitches
        if alone:
            bias = bias.masked_fill(~torch.eye(len(features), dtype=torch.bool), -torch.inf)
        x = self.enter(features)[None]
        for number, (attention, mlp) in enumerate(zip(self.attention, self.mlp, strict=True)):
            y = self.norms[2 * number](x)
            x = x + self.dropout(attention(y, y, y, attn_mask=bias, need_weights=False)[0])
            x = x + self.dropout(mlp(self.norms[2 * number + 1](x)))
        return self.leave(self.norms[-1](x))[0]


def spatial(fold: FoldData, seed: int, view: View, alone: bool = False, layers: int = 1) -> Part:
    """A transformer over each section's locations that predicts the components; three tenths of the spots are dropped
    in each step.
    """
    features, scores = torch.from_numpy(fold.features(view)), torch.from_numpy(fold.scores)
    weights, where = torch.from_numpy(fold.data.weights)[:, None], np.concatenate(fold.locations_um)
    names = list(dict.fromkeys(fold.section_of.tolist()))
    of = {name: np.flatnonzero(fold.section_of == name) for name in names}
    apart = {name: torch.from_numpy(cdist(where[rows], where[rows]) / 200).float() for name, rows in of.items()}

    def fit(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        torch.manual_seed(seed)
        network = Spatial(features.shape[1], fold.rank, layers)
        inside = list(dict.fromkeys(fold.section_of[rows].tolist()))

        def batches(epoch: int) -> Iterator[tuple[str, np.ndarray]]:
            rng = np.random.default_rng([seed, epoch])
            for name in (inside[i] for i in rng.permutation(len(inside))):
                kept = max(2, round(0.7 * len(of[name])))
                yield name, np.sort(rng.permutation(len(of[name]))[:kept])

        def loss(batch: tuple[str, np.ndarray]) -> Tensor:
            name, some = batch
            ids = of[name][some]
            guess = network(features[ids], apart[name][some][:, some], alone)
            return (weights[ids] * (guess - scores[ids]).square()).sum(dim=1).mean()

        def predict() -> np.ndarray:
            found = torch.empty(len(features), fold.rank)
            for name in dict.fromkeys(fold.section_of[others].tolist()):
                found[of[name]] = network(features[of[name]], apart[name], alone)
            return found[others].numpy()

        every = max(1, round(12 / len(inside)))  # 15 snapshots and about 180 steps of any number of sections
        return snapshots(network, batches, loss, predict, seed, epochs=15 * every, every=every, decay=0.01)

    return fold.cross(fit)


def spread(fold: FoldData, seed: int, name: str) -> Part:
    """A part's predictions, smoothed over the slide by each of `SPREADS_UM`."""
    held_in, test = fold.part(name, seed)
    of = [tuple(fold.means_around(x, um) if um else x for x in (held_in, test)) for um in SPREADS_UM]
    return np.concatenate([each[0] for each in of]), np.concatenate([each[1] for each in of])


def any_of(fold: FoldData, seed: int, names: tuple[str, ...]) -> Part:
    """The settings of several parts together, of which held-in spots choose one."""
    parts = [fold.part(name, seed) for name in names]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def smoothed_targets(share: float) -> Callable[[FoldData], np.ndarray]:
    """Components of the training spots, of which so much comes from the mean around them (150 um)."""
    return lambda fold: (1 - share) * fold.scores + share * fold.means_around(fold.scores, 150.0)


def _parts() -> dict[str, tuple[Callable[[FoldData, int], Part], bool]]:
    """Every part, and whether it has a random choice."""
    found: dict[str, tuple[Callable[..., Part], bool]] = {"retrieval": (towers, True)}
    found |= {"ridge": (ridge, False), "kernel": (kernel, False)}
    found["retrieval, batch sizes of sections"] = partial(towers, batch="sizes"), True
    found["retrieval, batches of a section"] = partial(towers, batch="section"), True
    found["retrieval, near negatives heavier"] = partial(towers, hard=1.0), True
    found["retrieval, gene tower sees around"] = partial(towers, around_um=150.0), True
    for kind, hidden in itertools.product(("squares", "nb", "zinb"), (0, 64)):
        found[f"{kind} {'mlp' if hidden else 'linear'}"] = partial(likelihood, kind=kind, hidden=hidden), True
    del found["zinb mlp"]
    targets: dict[str, Callable[[FoldData], np.ndarray]] = {
        "NB factors": lambda fold: fold.factor_scores,
        "Pearson residuals": lambda fold: fold.residual_scores,
        "half smoothed": smoothed_targets(0.5),
        "smoothed": smoothed_targets(1.0),
    }
    for name, of in targets.items():
        found |= {f"ridge, {name}": (partial(ridge, targets=of), False)}
        found |= {f"kernel, {name}": (partial(kernel, targets=of), False)}
    found["alone, own"] = partial(spatial, view=(), alone=True), True
    found["alone, 150 um"] = partial(spatial, view=DEFAULT, alone=True), True
    found["attention, own"] = partial(spatial, view=()), True
    found["attention, 150 um"] = partial(spatial, view=DEFAULT), True
    for view in RADII[1:]:
        which = "+".join(f"{radius:.0f}" for radius in view)
        for name, make in (("ridge", ridge), ("kernel", kernel)):
            found[f"{name} {which} um"] = partial(make, view=view), False
    for name in MEMBERS:
        found[f"{name}, spread"] = partial(spread, name=name), name == "retrieval"
    for name in WITHOUT:
        radii = (name, *(f"{name} {'+'.join(f'{radius:.0f}' for radius in view)} um" for view in RADII[1:3]))
        found[f"{name}, any radius"] = partial(any_of, names=radii), False
        found[f"{name}, any radius, spread"] = partial(spread, name=f"{name}, any radius"), False
    for share in (0.5, 2.0):
        found[f"ridge, around x {share:g}"] = partial(ridge, share=share), False
        found[f"kernel, around x {share:g}"] = partial(kernel, share=share), False
    return found


PARTS = _parts()
