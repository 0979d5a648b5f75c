"""What others claim to help, tried behind the frozen features of the default config, every choice made held in.

    python benchmarks/open_claims.py als/cohort.csv:patient her2st/cohort.csv:section --out open_claims.json

A **part** predicts the centred expression components of spots, in several settings (penalties, epochs, widths). Within
an outer fold each training patient (or section) is left out once; the setting with the best mean Pearson of the 50 HVG
on those that are left out is taken, and the weights of an ensemble are fitted on the same predictions, as the package
does it (`heads.ensemble`). Then the outer fold is scored, once. A variant is a part alone, or an ensemble of parts.
Networks that are compared have the same batches, steps and first weights, as far as their shapes are the same. Runs go
seed by seed and fold by fold and are written to `--out` as they end; an interrupted call continues behind the last.

Differences from a variant's own base are averaged over seeds and have Student's t intervals over the held-out patients
or sections. `held in` is the same difference on the spots left out inside the folds, which may choose; `held out` is
the answer.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from claimed_parts import CONFIG, MEMBERS, PARTS, WITHOUT, FoldData

import cmrcnet
from cmrcnet.evaluation.protocol.fold_runner import remembered
from cmrcnet.evaluation.protocol.folds import folds
from cmrcnet.genes.mean_interval import mean_interval
from cmrcnet.storage.atomic import atomic_file


def _variants() -> dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """Idea, parts and bases of each variant, by name."""
    found: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {"default": ("base", MEMBERS, ())}
    found |= {name: ("base", (name,), ()) for name in MEMBERS}
    control = "retrieval, batch sizes of sections"
    found[control] = "a", (control,), ("retrieval",)
    for name in ("batches of a section", "near negatives heavier", "gene tower sees around"):
        idea, part = "c" if "around" in name else "a", f"retrieval, {name}"
        bases = ("retrieval", control) if name == "batches of a section" else ("retrieval",)
        found[part] = idea, (part,), bases
        found[f"default, {part}"] = idea, (part, *WITHOUT), ("default",)
    for kind, form in itertools.product(("squares", "nb", "zinb"), ("linear", "mlp")):
        name = f"{kind} {form}"
        if name not in PARTS:
            continue
        found[name] = "b", (name,), ("ridge",) if kind == "squares" else ("ridge", f"squares {form}")
        found[f"default + {name}"] = "b", (*MEMBERS, name), ("default",)
    for name in ("NB factors", "Pearson residuals", "half smoothed", "smoothed"):
        for member in WITHOUT:
            found[f"{member}, {name}"] = "b", (f"{member}, {name}",), (member,)
        found[f"default, {name}"] = "b", ("retrieval", *(f"{member}, {name}" for member in WITHOUT)), ("default",)
    for name in ("alone, own", "alone, 150 um", "attention, own", "attention, 150 um"):
        bases = {"attention, own": ("alone, own", "alone, 150 um"), "attention, 150 um": ("alone, 150 um",)}
        found[name] = "d", (name,), (*bases.get(name, ()), "ridge")
        found[f"default + {name}"] = "d", (*MEMBERS, name), ("default",)
    for which in ("300 um", "500 um", "150+400 um", "any radius", "any radius, spread"):
        join = ", " if which[0].isalpha() else " "
        first = "retrieval, spread" if "spread" in which else "retrieval"
        found[f"default, {which}"] = "e", (first, *(f"{member}{join}{which}" for member in WITHOUT)), ("default",)
    found["default, spread"] = "e", tuple(f"{member}, spread" for member in MEMBERS), ("default",)
    found["default and 300 um"] = "e", (*MEMBERS, "ridge 300 um", "kernel 300 um"), ("default",)
    for share in ("0.5", "2"):
        of = tuple(f"{member}, around x {share}" for member in WITHOUT)
        found[f"default, around x {share}"] = "e", ("retrieval", *of), ("default",)
    return found


VARIANTS = _variants()


def summarise(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean of each variant and its paired difference from its bases, held out and held in, by cohort."""
    rows = [run | {"section": s, "value": value} for run in runs for s, value in run["scores"].items()]
    table, found = pd.DataFrame(rows), []
    for cohort, part in table.groupby("cohort", sort=False):
        unit = part["held_out"].iloc[0]
        part = part.assign(unit=part["fold"])  # a fold is a patient or a section
        index = ["unit", "seed", "section"]
        held_in: Any
        value, held_in = (part.pivot_table(each, index, "variant", sort=False) for each in ("value", "held_in"))
        for variant, (idea, _, bases) in VARIANTS.items():
            for base in bases or (variant,):
                if variant not in value or base not in value:
                    continue
                pairs: Any = value[[*{variant, base}]].dropna()
                by_seed = (pairs[variant] - pairs[base]).groupby(["unit", "seed"]).mean()
                inside = (held_in[variant] - held_in[base]).loc[pairs.index].groupby(["unit", "seed"]).mean()
                mean, low, high = mean_interval(by_seed.groupby("unit").mean().to_numpy())
                row = {"idea": idea, "cohort": cohort, "variant": variant, "base": base if bases else None}
                row["mean"] = float(pairs[variant].groupby("unit").mean().mean())
                row |= {"held_in": float(inside.mean()), "difference": mean, "low": low, "high": high}
                row |= {"over": unit, "n": by_seed.index.get_level_values(0).nunique(), "pairs": len(by_seed)}
                row["better"] = int((by_seed > 0).sum())
                found.append({k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()})
    return found


def show(summary: list[dict[str, Any]]) -> None:
    """Print the summary as a table in Markdown."""
    cohorts = list(dict.fromkeys(row["cohort"] for row in summary))
    print("| idea | variant | minus |" + " | ".join(f"{c}: HVG, held in, held out, better" for c in cohorts) + " |")
    rows = {(row["cohort"], row["variant"], row["base"]): row for row in summary}
    for idea, variant, base in dict.fromkeys((row["idea"], row["variant"], row["base"]) for row in summary):
        cells = []
        for row in (rows.get((cohort, variant, base)) for cohort in cohorts):
            cell = "" if row is None else f"{row['mean']:.4f}"
            if row is not None and base:
                limits = "" if row["low"] is None else f" ({row['low']:+.4f} to {row['high']:+.4f})"
                cell += f", {row['held_in']:+.4f}, {row['difference']:+.4f}{limits}, {row['better']} of {row['pairs']}"
            cells.append(cell)
        print(f"| {idea} | {variant} | {base or ''} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohorts", nargs="*", help="COHORT.csv:patient or COHORT.csv:section")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ideas", nargs="+", default=["a", "c", "b", "d", "e"], help="only these letters")
    parser.add_argument("--folds", nargs="+", help="only these folds")
    parser.add_argument("--skip", nargs="+", default=[], help="no variants with one of these in their names")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--show", action="store_true", help="only print what --out holds")
    args = parser.parse_args()
    runs = json.loads(args.out.read_text())["runs"] if args.out.exists() else []
    if args.show:
        return show(summarise(runs))
    torch.set_num_threads(1)
    done = {(run["cohort"], run["fold"], run["seed"], run["variant"]) for run in runs}
    opened: dict[tuple[str, str], FoldData] = {}
    cohorts = []
    for each in args.cohorts:
        path, held_out = each.rsplit(":", 1)
        cohort = remembered(cmrcnet.read_cohort(path))
        chosen = [fold for fold in folds(cohort, held_out) if not args.folds or fold.name in args.folds]
        cohorts += [(Path(path).parent.name, held_out, cohort, fold) for fold in chosen]
    for seed, idea, (name, held_out, cohort, fold) in itertools.product(args.seeds, ("base", *args.ideas), cohorts):
        wanted = {variant: parts for variant, (letter, parts, _) in VARIANTS.items() if letter == idea}
        todo = {v: parts for v, parts in wanted.items() if (name, fold.name, seed, v) not in done}
        todo = {v: parts for v, parts in todo.items() if not any(each in v for each in args.skip)}
        if not todo:
            continue
        start = time.monotonic()
        if (name, fold.name) not in opened:
            config = CONFIG.override({"evaluation.group_by": held_out})
            opened[name, fold.name] = FoldData(cohort, fold, config, cmrcnet.TokenCache.default())
        data = opened[name, fold.name]
        for variant, parts in todo.items():
            held_in, scores, facts = data.run(parts, seed)
            of = {"cohort": name, "fold": fold.name, "seed": seed, "variant": variant, "held_out": held_out}
            scores = {section: round(value, 5) for section, value in scores.items()}
            runs.append(of | {"held_in": round(held_in, 5), "scores": scores, "chosen": facts})
        data.forget(seed)
        lines = ",\n".join(json.dumps(run) for run in runs)
        with atomic_file(args.out) as tmp:
            tmp.write_text(f'{{"summary": {json.dumps(summarise(runs), indent=1)},\n"runs": [\n{lines}\n]}}\n')
        print(
            f"{name} {fold.name} seed {seed}, {idea}: {len(todo)} variants, {time.monotonic() - start:.0f} s",
            flush=True,
        )
    show(summarise(runs))


if __name__ == "__main__":
    main()
