"""Does reconstruction pay when the encoder is trained? Variants of the loss against contrastive training alone.

    python benchmarks/reconstruction.py als/cohort.csv:patient:12 her2st/cohort.csv:section:6 \
        --weights vits14.safetensors --out reconstruction.json

The last blocks of an encoder, or all of it, are trained (`model.trained_blocks`) on patches of 84 px, the rest alike:
batches, steps, first weights, and the held-in patient or section that chooses the epoch and, among `--rates`, the
learning rate. Each cohort is held out by what stands behind its file, and trained for so many epochs. Runs go seed by
seed, rate by rate, fold by fold, so that what is finished is always paired; each is written to `--out` when it ends,
and an interrupted call continues behind the last. Differences are paired by fold and seed, averaged over seeds, with
Student's t intervals over the held-out patients or sections. As in the protocol strict, panel and gene sets are chosen
on a fold's training sections, and a score is the mean Pearson correlation of 50 genes within a held-out section.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import cmrcnet
from cmrcnet.config import Config
from cmrcnet.evaluation.protocol.fold_runner import remembered
from cmrcnet.evaluation.protocol.folds import Fold, folds
from cmrcnet.genes.gene_sets import GenePanel, choose_panel, gene_sets
from cmrcnet.genes.mean_interval import mean_interval
from cmrcnet.genes.spatial_stats import pearson_per_gene
from cmrcnet.slides.section import Cohort
from cmrcnet.storage.atomic import atomic_file

BASE = "contrastive only"
VARIANTS: dict[str, dict[str, Any]] = {
    BASE: {"reconstruct": "none"},
    "image embedding (paper)": {"reconstruct": "image"},
    "tokens, shared layer": {"reconstruct": "tokens"},
    "expression from image": {"reconstruct": "expression"},
    "contrastive only, encoder frozen": {"reconstruct": "none", "train_encoder": False, "trained_blocks": None},
}
MASKS = {
    f"image, {kind}, {rate:g} hidden": {"reconstruct": "image", "reconstruction_loss": kind, "mask_rate": rate}
    for kind in ("mse", "cosine")
    for rate in (0.0, 0.3, 0.5, 0.7)
    if (kind, rate) != ("mse", 0.5)  # the paper's, above
}
RUN = ("encoder", "cohort", "fold", "seed", "rate", "variant")
ENCODERS: dict[str, dict[str, Any]] = {
    "vits14": {"model.encoder": "timm:vit_small_patch14_dinov2"},
    "lite0": {"model.encoder": "efficientnet-lite0"},
}
SETTINGS = {
    "patch.size_px": 84,
    "patch.mpp": 4 / 3,  # 112 um, a spot and a little around it; 36 tokens of ViT-S/14
    "panel.kind": "variance",
    "panel.n_hvg": 1000,
    "model.similarity": "cosine",
    "model.temperature": 0.1,
    "model.targets": "identity",
    "train.select_by": "pearson",
}


def config_of(encoder: str, variant: dict[str, Any], args: argparse.Namespace, epochs: int, seed: int) -> Config:
    """The preset `paper`, its similarity as in the default, with the last blocks of a small encoder trained."""
    chosen = {
        "model.weights": str(args.weights) if encoder == "vits14" else "pretrained",
        "model.trained_blocks": args.blocks or None,
        "train.epochs": epochs,
        "train.validate_every": max(1, epochs // 6),
        "train.batch_size": args.batch,
        "train.seed": seed,
        "train.precision": args.precision,
    }
    of_loss = {f"model.{name}": value for name, value in variant.items()}
    return Config.load("paper").override(SETTINGS | ENCODERS[encoder] | chosen | of_loss)


class Scorer:
    """Trains on the training sections of a fold, predicts its test sections and scores them."""

    def __init__(self, cohort: Cohort, fold: Fold, config: Config) -> None:
        self.cohort, self.fold, self.train = cohort, fold, cohort.only(fold.train).in_order()
        self.panel = choose_panel(self.train, config.panel)
        sets = gene_sets(self.train, self.panel.scaling, config.evaluation.set_size, svg=False)
        self.sets = {name: sets[name] for name in ("HVG", "HEG")}

    def run(self, config: Config) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Rows of scores, and what the training says of itself."""
        cache = cmrcnet.TokenCache.default()
        model = cmrcnet.fit(self.train, config, panel=self.panel, cache=cache, calibrate=False)
        bank = cmrcnet.build_bank(model, self.train)
        rows = []
        for name in self.fold.test:
            section, every = self.cohort.read(name), tuple(dict.fromkeys(itertools.chain(*self.sets.values())))
            how = {"bank": bank, "spots": section.spots, "genes": every, "content": "expression"}
            guess = cmrcnet.predict(model, section.slide, **how).to_df()
            for which, genes in self.sets.items():
                truth = GenePanel(genes, self.panel.scaling).select(section)
                value = float(np.nanmean(pearson_per_gene(truth, guess[list(genes)].to_numpy())))
                rows.append({"section": name, "patient": section.patient, "gene_set": which, "value": value})
        facts = model.provenance.facts
        chosen = {"epoch": model.provenance.chosen_epoch, "held_in": facts["validation"]}
        return rows, chosen | {"held_in_HVG": facts["validation_score"]}


def best_rates(kept: dict[str, Any]) -> pd.DataFrame:
    """The scores of each variant, fold and seed at the rate that was best held in, of those that all variants had."""
    where, run_of = ["encoder", "cohort", "fold", "seed"], ["encoder", "cohort", "fold", "seed", "variant"]
    runs = pd.DataFrame(kept["runs"])
    all_of = runs.groupby(where)["variant"].transform("nunique")
    tried = runs.groupby([*where, "rate"])["variant"].transform("nunique")
    runs = runs[tried == all_of].sort_values("held_in_HVG", ascending=False).drop_duplicates(run_of)
    return pd.DataFrame(kept["scores"]).merge(runs[[*run_of, "rate"]], on=[*run_of, "rate"])


def summarise(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Mean of each variant, and its paired difference from contrastive training alone, by encoder, cohort, gene set."""
    rows = []
    for (encoder, cohort, gene_set), part in table.groupby(["encoder", "cohort", "gene_set"], sort=False):
        unit = "patient" if part["held_out"].iloc[0] == "patient" else "section"
        index = list(dict.fromkeys(["fold", "seed", unit, "section"]))
        values = part.pivot_table("value", index, "variant", sort=False)
        for variant in values.columns:
            pairs = values[[BASE, variant]].dropna() if variant != BASE else values[[BASE]].dropna()
            difference = pairs[variant] - pairs[BASE]
            units = difference.groupby(unit).mean()
            mean, low, high = mean_interval(units.to_numpy())
            by_seed = difference.groupby([unit, "seed"]).mean()
            row = {"encoder": encoder, "cohort": cohort, "gene_set": gene_set, "variant": variant}
            row["mean"] = float(pairs[variant].groupby(unit).mean().mean())
            row["base"] = float(pairs[BASE].groupby(unit).mean().mean())
            row |= {"difference": float(mean), "low": float(low), "high": float(high), "over": unit, "n": len(units)}
            row |= {"pairs": len(by_seed), "better": int((by_seed > 0).sum())}
            rows.append({key: None if isinstance(v, float) and math.isnan(v) else v for key, v in row.items()})
    return rows


def show(summary: list[dict[str, Any]]) -> None:
    """Print the summary as a table in Markdown."""
    print("| encoder, cohort | variant | HVG | HEG | difference (HVG), 95 % | better |\n|---|---|---|---|---|---|")
    heg = {(row["encoder"], row["cohort"], row["variant"]): row["mean"] for row in summary if row["gene_set"] == "HEG"}
    for row in (row for row in summary if row["gene_set"] == "HVG"):
        of = row["encoder"], row["cohort"], row["variant"]
        limits = "" if row["low"] is None else f" ({row['low']:+.3f} to {row['high']:+.3f})"
        compared = f"{row['difference']:+.3f}{limits}, {row['n']} {row['over']}s | {row['better']} of {row['pairs']}"
        compared = " | " if row["variant"] == BASE else compared
        print(f"| {of[0]}, {of[1]} | {of[2]} | {row['mean']:.3f} | {heg[of]:.3f} | {compared} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohorts", nargs="+", help="COHORT.csv:patient:EPOCHS or COHORT.csv:section:EPOCHS")
    parser.add_argument("--weights", type=Path, required=True, help="DINOv2 ViT-S/14, safetensors")
    parser.add_argument("--encoder", choices=ENCODERS, default="vits14")
    parser.add_argument("--what", choices=("main", "masks"), default="main")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folds", nargs="+", help="only these folds")
    parser.add_argument("--blocks", type=int, default=2, help="the last that are trained; 0: the whole encoder")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rates", type=float, nargs="+", default=[2e-4, 5e-4])
    parser.add_argument("--precision", choices=("bf16", "float32"), default="bf16", help="bf16 crawls without AVX-512")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--show", action="store_true", help="only print what --out holds")
    args = parser.parse_args()
    how = {name: getattr(args, name) for name in ("blocks", "batch", "precision")}
    kept: dict[str, Any] = {"scores": [], "runs": []}
    if args.out.exists():
        kept = json.loads(args.out.read_text())
    if args.show:
        return show(summarise(best_rates(kept)))
    done = {tuple(each[name] for name in RUN) for each in kept["runs"]}
    variants = VARIANTS if args.what == "main" else {BASE: VARIANTS[BASE]} | MASKS
    torch.set_num_threads(args.threads)
    cohorts = []
    for each in args.cohorts:
        path, held_out, epochs = each.rsplit(":", 2)
        cohort = remembered(cmrcnet.read_cohort(path))
        chosen = [fold for fold in folds(cohort, held_out) if not args.folds or fold.name in args.folds]
        plan = config_of(args.encoder, {}, args, int(epochs), 0)
        scorers = [Scorer(cohort, fold, plan) for fold in chosen]
        cohorts.append((Path(path).parent.name, held_out, int(epochs), scorers))
    for seed, rate, (name, held_out, epochs, scorers) in itertools.product(args.seeds, args.rates, cohorts):
        for scorer, (variant, settings) in itertools.product(scorers, variants.items()):
            of = dict(zip(RUN, (args.encoder, name, scorer.fold.name, seed, rate, variant), strict=True))
            if tuple(of.values()) in done:
                continue
            start = time.monotonic()
            config = config_of(args.encoder, settings, args, epochs, seed)
            also = {"train.learning_rate": rate, "evaluation.group_by": held_out}
            scores, facts = scorer.run(config.override(also))
            kept["scores"] += [of | {"held_out": held_out} | row for row in scores]
            kept["runs"].append(of | how | facts | {"epochs": epochs, "seconds": round(time.monotonic() - start, 1)})
            kept["summary"] = summarise(best_rates(kept))
            with atomic_file(args.out) as tmp:
                tmp.write_text(json.dumps(kept, indent=1) + "\n")
            hvg = np.mean([row["value"] for row in scores if row["gene_set"] == "HVG"])
            print(f"{kept['runs'][-1]} HVG {hvg:.3f}", flush=True)
    show(kept["summary"])


if __name__ == "__main__":
    main()
