"""Curves of several runs' trainings side by side: what the report shows of one run, for comparing presets.

    python benchmarks/training_curves.py run-paper run-as-released --out training_curves.png

Of each run folder the first fold of `cmrcnet` is drawn, its search phase.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

PANELS = (
    ("contrastive loss / ln(batch), training", "loss_over_ln_batch", None),
    ("the same, held in", "meter_loss_over_ln_batch", None),
    ("true spot among the 5 nearest / chance", "meter_recall_at_k", "meter_chance"),
    ("directions of the embeddings", "meter_effective_rank", None),
)


def history(run: Path) -> list[dict]:
    """The rows of the first fold's search phase."""
    parts = json.loads((run / "run.json").read_text(encoding="utf-8"))["sections"]
    rows = next(part["record"]["history"] for part in parts if part["method"] == "cmrcnet")
    return [row for row in rows if row["phase"] == "search"]


def draw(runs: list[Path], out: Path) -> None:
    """A panel a quantity, a line a run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    picture, axes = plt.subplots(1, len(PANELS), figsize=(13, 3.2), layout="constrained")
    for run in runs:
        rows = history(run)
        for axis, (title, name, unit) in zip(axes, PANELS, strict=True):
            seen = [row for row in rows if row.get(name) is not None]
            values = [row[name] / (row[unit] if unit else 1) for row in seen]
            axis.plot([row["epoch"] for row in seen], values, label=run.name)
            axis.set(title=title, xlabel="epoch")
    for axis in axes[:3]:
        axis.axhline(1, color="grey", linewidth=0.8, linestyle=":")
    axes[0].legend(fontsize=8)
    for axis in axes:
        axis.title.set_fontsize(9)
    picture.savefig(out, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="run folders of `cmrcnet evaluate`")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    draw(options.runs, options.out)


if __name__ == "__main__":
    main()
