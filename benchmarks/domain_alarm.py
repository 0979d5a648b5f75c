"""Does the domain alarm hear planted shifts, and keep quiet on sound sections?

    python benchmarks/domain_alarm.py als/cohort.csv:patient her2st/cohort.csv:section --out domain_alarm.json

Each section is judged by a domain that was fitted on the sections of the other units (patients or sections, as said
behind each cohort): as it is, and with each shift planted. The sections of every other cohort are judged by all
sections of one: another organ. Reads pixels only; a minute.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from cmrcnet.readers.cohort import read_cohort
from cmrcnet.slides.patches import crop_patches, crop_scales
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


def looked_at(path: Path, unit: str) -> list[dict]:
    """Of each section: its unit, its traits as it is and under each shift, and what shifts do to it."""
    found = []
    for section in read_cohort(path):
        centres = section.spots.centre_px
        plain = np.concatenate(list(crop_patches(section.slide, centres, STATISTICS_SCALE)))
        traits = {SOUND: patch_statistics(plain)}
        for shift in PERTURBATIONS:
            patches = (
                plain
                if shift.scale == STATISTICS_SCALE
                else np.concatenate(list(crop_patches(section.slide, centres, shift.scale)))
            )
            traits[shift.name] = patch_statistics(shift.change(patches))
        its = section.patient if unit == "patient" else section.name
        picked = centres[evenly(len(centres), PERTURBED_LOCATIONS)]
        effects = perturbation_effects(perturbed_statistics(crop_scales(section.slide, picked, PERTURBED_SCALES)))
        found.append({"name": section.name, "unit": its, "traits": traits, "moves": effects})
    return found


def domain_of(sections: list[dict]) -> OODDetector:
    """Fitted on these sections."""
    columns = ([each["traits"][SOUND] for each in sections], [each["moves"] for each in sections])
    return fit_ood_detector(*columns, [each["unit"] for each in sections])


def measure(cohorts: dict[str, list[dict]]) -> dict[str, dict[str, dict[str, float]]]:
    """Alarms, right names and share of locations outside, by cohort and shift."""
    told: dict[tuple[str, str], list[tuple[bool, bool, float]]] = {}
    for name, sections in cohorts.items():
        for one in sections:
            judge = domain_of([each for each in sections if each["unit"] != one["unit"]])
            for kind, traits in one["traits"].items():
                inside, alarm = judge.flag(traits)
                right = alarm.kind == ("" if kind == SOUND else kind)
                told.setdefault((name, kind), []).append((alarm.raised, right, 1 - inside.mean()))
        whole = domain_of(sections)
        for other, strangers in cohorts.items():
            for one in strangers if other != name else ():
                inside, alarm = whole.flag(one["traits"][SOUND])
                told.setdefault((name, OTHER), []).append((alarm.raised, alarm.kind == "unlike", 1 - inside.mean()))
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for (name, kind), each in told.items():
        alarms, right, outside = (np.array(column, float) for column in zip(*each, strict=True))
        figures.setdefault(name, {})[kind] = {
            "sections": len(each), "alarms": int(alarms.sum()), "named_right": int(right.sum()),
            "places_outside": round(float(outside.mean()), 4),
        }  # fmt: skip
    return figures


def to_markdown(figures: dict[str, dict[str, dict[str, float]]]) -> str:
    """A row a shift."""
    kinds = list(dict.fromkeys(kind for each in figures.values() for kind in each))
    lines = ["| shift | " + " | ".join(f"{name}: alarms, named right, locations outside" for name in figures) + " |"]
    lines.append("|---" * (len(figures) + 1) + "|")
    for kind in kinds:
        cells = []
        for each in figures.values():
            row = each.get(kind)
            said = "" if row is None else f"{row['alarms']}/{row['sections']}, {row['named_right']}, "
            cells.append(said + ("" if row is None else f"{row['places_outside']:.1%}"))
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cohorts", nargs="+", help="COHORT.csv:patient or COHORT.csv:section")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    cohorts = {}
    for each in given.cohorts:
        path, _, unit = each.rpartition(":")
        cohorts[Path(path).parent.name] = looked_at(Path(path), unit)
    figures = measure(cohorts)
    print(to_markdown(figures))
    if given.out:
        given.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
