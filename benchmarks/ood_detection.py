"""Which slides does the out-of-distribution detector flag: perturbed ones, another organ's, and sound ones?

    python benchmarks/ood_detection.py als/cohort.csv:patient her2st/cohort.csv:section --synthetic 4 --out ood.json

Each section is judged by a detector that was fitted on the sections of the other groups (patients or sections, as said
behind each cohort): as it is, and under each perturbation. The sections of every other cohort are judged by all
sections of one: another organ. With `--synthetic N`, N cohorts of 12 synthetic patients give the rate of false flags:
24 times, 3 to 9 patients of one cohort are drawn to fit the detector, and the others, which are sound, are judged.
Reads pixels only; a minute for two cohorts, half a minute for each synthetic one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from cmrcnet.datasets.synthetic import synthetic_cohort
from cmrcnet.readers.cohort import read_cohort
from cmrcnet.slides.patches import crop_patches, crop_scales
from cmrcnet.slides.section import Cohort
from cmrcnet.uncertainty.ood import (
    PERTURBATIONS,
    PERTURBED_LOCATIONS,
    PERTURBED_SCALES,
    STATISTICS_SCALE,
    OODDetector,
    evenly,
    fit_ood_detector,
    patch_statistics,
    perturbation_effects,
    perturbed_statistics,
)

SOUND, OTHER = "as it is", "another organ"
TRAINING_PATIENTS = (3, 4, 5, 6, 7, 9)
DRAWS = 24


def measured(cohort: Cohort, group_by: str) -> list[dict]:
    """Of each section: its group, its image statistics as it is and perturbed, and the perturbations' effects."""
    found = []
    for section in cohort:
        centres = section.spots.centre_px
        plain = np.concatenate(list(crop_patches(section.slide, centres, STATISTICS_SCALE)))
        statistics = {SOUND: patch_statistics(plain)}
        for perturbation in PERTURBATIONS:
            patches = (
                plain
                if perturbation.scale == STATISTICS_SCALE
                else np.concatenate(list(crop_patches(section.slide, centres, perturbation.scale)))
            )
            statistics[perturbation.name] = patch_statistics(perturbation.change(patches))
        group = section.patient if group_by == "patient" else section.name
        picked = centres[evenly(len(centres), PERTURBED_LOCATIONS)]
        effects = perturbation_effects(perturbed_statistics(crop_scales(section.slide, picked, PERTURBED_SCALES)))
        found.append({"group": group, "statistics": statistics, "effects": effects})
    return found


def detector_of(sections: list[dict]) -> OODDetector:
    """Fitted on these sections."""
    columns = ([each["statistics"][SOUND] for each in sections], [each["effects"] for each in sections])
    return fit_ood_detector(*columns, [each["group"] for each in sections])


def detection(cohorts: dict[str, list[dict]]) -> dict[str, dict[str, dict[str, float]]]:
    """Flags, right names and share of locations out of distribution, by cohort and perturbation."""
    judged: dict[tuple[str, str], list[tuple[bool, bool, float]]] = {}
    for name, sections in cohorts.items():
        for one in sections:
            detector = detector_of([each for each in sections if each["group"] != one["group"]])
            for kind, statistics in one["statistics"].items():
                inside, flag = detector.flag(statistics)
                right = flag.kind == ("" if kind == SOUND else kind)
                judged.setdefault((name, kind), []).append((flag.raised, right, 1 - inside.mean()))
        whole = detector_of(sections)
        for other, sections_of_other in cohorts.items():
            for one in sections_of_other if other != name else ():
                inside, flag = whole.flag(one["statistics"][SOUND])
                judged.setdefault((name, OTHER), []).append((flag.raised, flag.kind == "unlike", 1 - inside.mean()))
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for (name, kind), each in judged.items():
        flagged, right, outside = (np.array(column, float) for column in zip(*each, strict=True))
        figures.setdefault(name, {})[kind] = {
            "sections": len(each), "flagged": int(flagged.sum()), "named_right": int(right.sum()),
            "locations_outside": round(float(outside.mean()), 4),
        }  # fmt: skip
    return figures


def false_flags(cohorts: list[list[dict]], seed: int = 0) -> dict[str, dict[str, int]]:
    """Flagged and judged sound sections, by number of training patients."""
    rng, figures = np.random.default_rng(seed), {}
    for patients in TRAINING_PATIENTS:
        flagged = judged = 0
        for draw in range(DRAWS):
            sections = cohorts[draw % len(cohorts)]
            order = rng.permutation(len(sections))
            detector = detector_of([sections[i] for i in order[:patients]])
            flags = [detector.flag(sections[i]["statistics"][SOUND])[1].raised for i in order[patients:]]
            flagged, judged = flagged + sum(flags), judged + len(flags)
        figures[str(patients)] = {"flagged": flagged, "judged": judged}
    return figures


def to_markdown(figures: dict[str, dict[str, dict[str, float]]]) -> str:
    """A row for each perturbation."""
    kinds = list(dict.fromkeys(kind for each in figures.values() for kind in each))
    heads = " | ".join(f"{name}: flagged, named right, locations outside" for name in figures)
    lines = [f"| perturbation | {heads} |", "|---" * (len(figures) + 1) + "|"]
    for kind in kinds:
        rows = [each.get(kind) for each in figures.values()]
        cells = [
            f"{row['flagged']}/{row['sections']}, {row['named_right']}, {row['locations_outside']:.1%}" if row else ""
            for row in rows
        ]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cohorts", nargs="*", help="COHORT.csv:patient or COHORT.csv:section")
    parser.add_argument("--synthetic", type=int, default=0, help="synthetic cohorts for the rate of false flags")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    cohorts = {}
    for each in given.cohorts:
        path, _, group_by = each.rpartition(":")
        cohorts[Path(path).parent.name] = measured(read_cohort(path), group_by)
    figures: dict[str, dict] = {"detection": detection(cohorts)}
    print(to_markdown(figures["detection"]))
    if given.synthetic:
        made = (synthetic_cohort(patients=12, spots=80, genes=60, seed=seed) for seed in range(given.synthetic))
        figures["false_flags"] = false_flags([measured(cohort, "patient") for cohort in made])
        for patients, row in figures["false_flags"].items():
            print(f"{patients} training patients: {row['flagged']} of {row['judged']} sound sections flagged")
    if given.out:
        given.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
