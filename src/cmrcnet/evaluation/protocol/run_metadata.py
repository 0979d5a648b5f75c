"""All that `run.json` says of a run."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

from cmrcnet.evaluation.protocol.experiment import Key, Study
from cmrcnet.evaluation.protocol.protocol_info import Stamp
from cmrcnet.evaluation.protocol.run_folder import Part
from cmrcnet.evaluation.protocol.section_memory import section_fingerprint
from cmrcnet.slides.section import Cohort

_LIBRARIES = ("cmrcnet", "torch", "timm", "numpy", "scipy", "scikit-learn", "scanpy", "anndata")


def describe(cohort: Cohort) -> list[dict[str, Any]]:
    """One row a section: what it holds, by fingerprint, and what its reader noticed."""
    return [
        {
            "section": section.name,
            "patient": section.patient,
            "spots": len(section.spots),
            "genes": len(section.genes),
            "mpp": section.slide.mpp,
            "fingerprint": section_fingerprint(section),
            "notes": list(section.notes),
            "facts": dict(section.metadata),
        }
        for section in cohort
    ]


def run_facts(
    cohort: Cohort,
    study: Study,
    stamp: Stamp,
    parts: dict[Key, Part],
    described: list[dict[str, Any]],
    time: dict[str, Any],
) -> dict[str, Any]:
    """What `run.json` holds.

    Parameters
    ----------
    cohort : Cohort
    study : Study
        Its folds are planned.
    stamp : Stamp
    parts : dict
    described : list
        From `describe`.
    time : dict
        From `shares_of_time`.
    """
    return {
        "cohort": {"name": cohort.name, "sections": described},
        "config": study.config.to_dict(),
        "protocol": study.protocol,
        "seed": study.seeds[0],
        "seeds": list(study.seeds),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _LIBRARIES},
        "stamp": {**vars(stamp), "warnings": list(stamp.warnings)},
        "folds": [
            {
                "name": fold.name,
                "train": list(fold.train),
                "test": list(fold.test),
                "patient_disjoint": fold.patient_disjoint,
                "gene_sets": {
                    name: list(genes) for name, genes in study.plans[fold.name].scored.items() if name != "all"
                },
            }
            for fold in study.folds
        ],
        "methods": [{"name": method.name, "about": method.about} for method in study.methods],
        "parts": [
            {"fold": fold, "method": method, "seed": seed, "seconds": round(part.seconds, 2), "record": part.record}
            for (fold, method, seed), part in parts.items()
        ],
        "time": time,
    }


def shares_of_time(parts: dict[Key, Part], features_s: float) -> dict[str, Any]:
    """Where the time went: seconds of computing the features, and of each method over all folds and seeds.

    Seconds are those of fitting, predicting and scoring, added up over tasks; side by side they take less of the clock.
    Reading sections, which the methods of a fold share, is in none of them.
    """
    seconds: dict[str, float] = {}
    for (_, method, _), part in parts.items():
        seconds[method] = seconds.get(method, 0.0) + part.seconds
    total = sum(seconds.values()) or 1.0
    return {
        "features_s": round(features_s, 2),
        "tasks_s": round(sum(seconds.values()), 2),
        "methods": {name: {"seconds": round(s, 2), "share": round(s / total, 4)} for name, s in seconds.items()},
    }


def time_text(time: dict[str, Any]) -> str:
    """The shares as plain text, the longest first."""
    rows = sorted(time["methods"].items(), key=lambda row: -row[1]["seconds"])
    width = max(len(name) for name, _ in rows)
    lines = [f"  {name:{width}}  {row['seconds']:8.1f} s  {row['share']:4.0%}" for name, row in rows]
    head = f"Time: features {time['features_s']:.1f} s, then {time['tasks_s']:.1f} s of tasks (side by side in less):"
    return "\n".join([head, *lines])
