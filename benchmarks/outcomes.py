"""Outcome models held to account: real follow-up, intervals by simulation, synthetic slides with a planted hazard.

    python benchmarks/outcomes.py blca patients.csv.gz --out outcomes.json
    python benchmarks/outcomes.py coverage --out outcomes.json
    PYTHONPATH=. python benchmarks/outcomes.py made --out outcomes.json
    python benchmarks/outcomes.py slides --work folder --out outcomes.json
    python benchmarks/outcomes.py few als/cohort.csv her2st/cohort.csv --out outcomes.json

Each part adds its rows to OUT. `blca`: 373 patients, measured genes. `coverage`: how often the interval of a paired
difference holds the true difference, beside a bootstrap of patients and a plain t over folds. `made`: 120 patients with
made prediction tables; the hazard falls with the patient's immune regions, follows nothing, or follows the scanner,
which shifts colours and predictions. `slides`: the same with true pictures: 120 synthetic
slides of 120 patients, whose expression is predicted by a model of other patients; the hazard falls with the patient's
lymphocytes, follows nothing, or follows the scanner. `few`: classes of real sections, which are too few. `slides` takes
a quarter of an hour of one core; models, predictions and finished parts are kept in the folder for another run, and its
tables serve the command: `cmrcnet outcomes planted.csv --slides slides.csv --time months --event dead --clinical age`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd

from cmrcnet.config import Config
from cmrcnet.datasets.synthetic import synthetic_cohort, synthetic_section, synthetic_truth
from cmrcnet.evaluation.methods.frozen_features import PooledFeatures
from cmrcnet.evaluation.methods.trained_cmrcnet import permuted
from cmrcnet.export.stored_prediction import StoredPrediction
from cmrcnet.genes.scaling import normalize
from cmrcnet.inference.predict import predict_to_file
from cmrcnet.inference.predictor import PredictOptions, make_predictor
from cmrcnet.models.trained_model import TrainedModel
from cmrcnet.outcomes.cohort import Classes, Columns, OutcomeCohort, cohort_of_table
from cmrcnet.outcomes.metrics import auroc_pairs, draws_of_patients
from cmrcnet.outcomes.pooling import SlideStack, slide_values, with_slides
from cmrcnet.outcomes.protocol import ProtocolOptions, compare, methods_of
from cmrcnet.outcomes.report import report_html, to_text
from cmrcnet.outcomes.risk_maps import risk_maps
from cmrcnet.outcomes.scoring import corrected_interval
from cmrcnet.outcomes.slide_features import SlideFeatures
from cmrcnet.readers.annotations import read_cohort_regions
from cmrcnet.readers.cohort import read_cohort
from cmrcnet.readers.patient_table import read_patients
from cmrcnet.retrieval.bank import ReferenceBank, build_bank
from cmrcnet.slides.slide import ArraySlide
from cmrcnet.storage.cache import TokenCache
from cmrcnet.training.fit import fit

PATIENTS, SPOTS, GENES = 120, 30, 96
SIGNATURES = ("TUMOUR", "GRADE", "LYMPH", "STROMA", "FAT", "CROWD")
COMPARED = ("none", "clinical", "expression", "clinical + expression", "spatial", "components", "imagenet", "shuffled")
COMPARED += ("colour", "colour + expression", "attention")
STRENGTH = 1.2
"""Log hazard a standard deviation of the planted cause."""


def rows_of(run) -> dict:
    """Main metric of every method, the differences, the null."""
    metrics = run.scores.pivot(index="method", columns="metric", values="value").round(4)
    main = run.scores[run.scores.metric == run.metric].set_index("method")[["value", "low", "high"]].round(4)
    gaps = run.differences.round(4)
    null = run.null.groupby("method")["value"].agg(["mean", "min", "max"]).round(4)
    return {
        "said": to_text(run).splitlines(),
        "main": main.to_dict("index"),
        "metrics": metrics.astype(object).where(metrics.notna(), None).to_dict("index"),
        "differences": gaps.astype(object).where(gaps.notna(), None).to_dict("records"),
        "null": null.to_dict("index"),
        "p of the permutations": {name: round(run.p_value(name), 4) for name in dict.fromkeys(run.null.method)},
    }


def blca(path: Path, permutations: int) -> dict:
    """Age and sex, ten components of the genes, both."""
    cohort = cohort_of_table(
        read_patients(path),
        name="TCGA-BLCA",
        time="time_months",
        event="event",
        clinical=["age", "female"],
        leave_out=["histology"],
    )
    return rows_of(compare(cohort, ProtocolOptions(permutations=permutations)))


def one_cohort(seed: int, patients: int, useful: tuple[int, int]) -> list[float]:
    """Two ridge classifiers of eight features each: difference of AUROC with three intervals."""
    from scipy.special import stdtrit
    from sklearn.model_selection import StratifiedKFold

    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, patients)
    inputs = []
    for count in useful:
        x = rng.normal(size=(patients, 8))
        x[:, :count] += 0.5 * (truth[:, None] - 0.5)
        inputs.append(x)
    gaps, credit, weight = [], 0, 0
    for repeat in range(2):
        scores, of = np.zeros((2, patients)), np.zeros(patients, int)
        for fold, (train, test) in enumerate(
            StratifiedKFold(5, shuffle=True, random_state=repeat).split(inputs[0], truth)
        ):
            of[test] = fold
            for x, score in zip(inputs, scores, strict=True):
                centred = x[train] - x[train].mean(axis=0)
                solution = np.linalg.solve(
                    centred.T @ centred + 10 * np.eye(8), centred.T @ (truth[train] - truth[train].mean())
                )
                score[test] = (x[test] - x[train].mean(axis=0)) @ solution
            first, second = (float(auroc_pairs(truth[test] == 1, score[test]).value()[0]) for score in scores)
            gaps.append(first - second)
        first, second = (auroc_pairs(truth == 1, score, of) for score in scores)
        credit, weight = credit + first.credit - second.credit, weight + first.weight
    draws = draws_of_patients(np.arange(patients), 200, seed)
    sampled = np.einsum("bi,bi->b", draws @ credit, draws) / np.einsum("bi,bi->b", draws @ weight, draws)
    mean, low, high = corrected_interval(np.array(gaps), 0.25, float(sampled.std()))
    _, narrow, wide = corrected_interval(np.array(gaps), 0.25)
    plain = float(stdtrit(9, 0.975) * np.std(gaps, ddof=1) / np.sqrt(10))
    return [mean, low, high, narrow, wide, *np.quantile(sampled, [0.025, 0.975]), mean - plain, mean + plain]


def coverage(cohorts: int) -> list[dict]:
    """Share of simulated cohorts whose interval holds the true difference."""
    found = []
    for patients in (60, 120, 300):
        for useful in ((0, 0), (3, 3), (4, 1)):
            values = np.array([one_cohort(seed, patients, useful) for seed in range(cohorts)])
            true = values[:, 0].mean()
            names = ("ours", "nadeau-bengio", "bootstrap of patients", "t over folds")
            row = {"patients": patients, "useful features": list(useful), "true difference": round(float(true), 3)}
            for number, name in enumerate(names):
                low, high = values[:, 1 + 2 * number], values[:, 2 + 2 * number]
                row[name] = round(float(((low <= true) & (true <= high)).mean()), 3)
            found.append(row)
            print(row, flush=True)
    return found


def predicted_slides(work: Path, scanner: np.ndarray | None) -> list:
    """Predict every patient's slide by a model, and by one of shuffled pairs, that know other patients only."""
    config = Config.load("fast")
    cache = TokenCache(work / "cache")
    cohort = synthetic_cohort(patients=6, spots=100, genes=GENES, seed=11)
    predictors = []
    for kind, known in (("true", cohort), ("shuffled", permuted(cohort, 0))):
        if not (work / f"bank-{kind}").exists():
            fitted = fit(known, config, cache=cache)
            fitted.save_pretrained(work / f"model-{kind}", overwrite=True)
            build_bank(fitted, known, cache=cache).save(work / f"bank-{kind}")
        model = TrainedModel.from_pretrained(work / f"model-{kind}")
        bank = ReferenceBank.load(work / f"bank-{kind}")
        predictors.append(make_predictor(model, bank, PredictOptions(grid_um=150.0)))
    people = [f"O{number + 1:03d}" for number in range(PATIENTS)]
    embedding = SlideFeatures(cache, people, model=None)
    found, rows = [], []
    for number, person in enumerate(people):
        slide = synthetic_section(23, patient=number, spots=SPOTS, genes=GENES).slide
        pixels = slide.read(0, 0, slide.width_px, slide.height_px)
        if scanner is not None and scanner[number]:
            pixels = (pixels * np.array([0.97, 0.9, 0.94])).astype(np.uint8)
        slide = ArraySlide(pixels, slide.mpp, person)
        tint = int(scanner is not None and scanner[number])  # slides of the other scanner are as they were
        paths = [work / f"{person}-{kind}-{tint}.h5ad" for kind in ("true", "shuffled")]
        for predictor, path in zip(predictors, paths, strict=True):
            if not path.exists():
                predict_to_file(predictor, slide, path, cache=cache)
        with StoredPrediction(paths[0]) as table, StoredPrediction(paths[1]) as shuffled:
            pooled = embedding.of(slide, table)
            values = slide_values(
                table, slide=person, case=person, cohort_patients=people, shuffled=shuffled, pooled=pooled
            )
        found.append(values)
        rows.append({"slide": person, "patient": person, "table": paths[0].name, "shuffled": paths[1].name})
        if number % 20 == 19:
            print(f"{number + 1} slides", flush=True)
    pd.DataFrame(rows).to_csv(work / ("slides.csv" if scanner is None else "slides-scanner.csv"), index=False)
    return found


def slides(work: Path, permutations: int) -> dict:
    """A planted hazard, none, and that of the scanner."""
    from lifelines.utils import concordance_index

    work.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(5)
    sections = [synthetic_section(23, patient=number, spots=SPOTS, genes=GENES) for number in range(PATIENTS)]
    cause = np.array([synthetic_truth(section).traits[:, 2].mean() for section in sections])
    scanner = rng.integers(0, 2, PATIENTS)
    plain = predicted_slides(work, None)
    signatures = {name.lower(): [gene for gene in plain[0].genes if gene.startswith(name)] for name in SIGNATURES}
    found = {}
    for number, kind in enumerate(("planted", "null", "scanner")):
        rng = np.random.default_rng([5, number])
        kept = work / f"{kind}.json"
        if kept.exists():
            found[kind] = json.loads(kept.read_text())
            continue
        mine = predicted_slides(work, scanner) if kind == "scanner" else plain
        driver = {"planted": -cause, "scanner": scanner.astype(float)}.get(kind)
        driver = rng.normal(size=PATIENTS) if driver is None else driver
        oracle = STRENGTH * (driver - driver.mean()) / driver.std()
        life, left = rng.exponential(np.exp(-oracle)), rng.exponential(2.5, PATIENTS)
        table = pd.DataFrame({"patient": [each.case for each in mine], "months": np.minimum(life, left) + 1e-3})
        table["dead"], table["age"] = (life <= left).astype(float), rng.normal(60, 9, PATIENTS).round(1)
        table.to_csv(work / f"{kind}.csv", index=False)
        cohort = cohort_of_table(table, name=kind, time="months", event="dead", clinical=["age"], features=[])
        cohort = with_slides(cohort, SlideStack.of(mine, cohort.cases), signatures)
        methods = [method for method in methods_of(cohort) if method.name in COMPARED]
        run = compare(cohort, ProtocolOptions(permutations=permutations, repeats=1), methods=methods)
        found[kind] = rows_of(run) | {
            "events": int(table.dead.sum()),
            "oracle C": round(float(concordance_index(table.months, -oracle, table.dead)), 4),
        }
        (work / f"{kind}.html").write_text(report_html(run, maps=risk_maps(run)), encoding="utf-8")
        kept.write_text(json.dumps(found[kind]))
        print(kind, "oracle", found[kind]["oracle C"], *found[kind]["said"], sep="\n", flush=True)
    return found


def made() -> dict:
    """The cohorts of the tests: a planted hazard, none, and that of the scanner."""
    from lifelines.utils import concordance_index

    from tests.outcomes.made_slides import made_cohort

    found = {}
    kinds = {"planted": {}, "null": {"strength": 0.0}, "scanner": {"confounded": True}}
    for kind, options in kinds.items():
        cohort, table = made_cohort(PATIENTS, seed=1, **options)
        methods = [method for method in methods_of(cohort) if method.name in COMPARED]
        run = compare(cohort, ProtocolOptions(permutations=0, repeats=1), methods=methods)
        oracle = concordance_index(table.months, -table.oracle, table.dead)
        found[kind] = rows_of(run) | {"events": int(table.dead.sum()), "oracle C": round(float(oracle), 4)}
        print(kind, "oracle", found[kind]["oracle C"], *found[kind]["said"], sep="\n", flush=True)
    return found


def few(als: Path, her2st: Path) -> dict:
    """Mutant against wild type, and cancer against other labels: measured expression and colour."""
    features = PooledFeatures(Config.load("default"), TokenCache.default())
    found = {}
    for name, path in (("als", als), ("her2st", her2st)):
        cohort, cases, patients, labels, parts = read_cohort(path), [], [], [], []
        regions = read_cohort_regions(path) if name == "her2st" else {}
        shared = None
        for section in cohort:
            if name == "als":
                condition = str(section.metadata["condition"])
                groups = {("mutant" if "SOD1" in condition else "wild type"): np.arange(len(section.spots))}
            else:
                label = np.array(
                    [
                        "cancer"
                        if "cancer" in str(regions[section.name].get(b, ""))
                        else str(regions[section.name].get(b, "unknown"))
                        for b in section.spots.barcodes
                    ]
                )
                groups = {"cancer": np.flatnonzero(label == "cancer")}
                groups["other"] = np.flatnonzero((label != "cancer") & (label != "unknown"))
            expression = pd.DataFrame(normalize(section.counts).toarray(), columns=pd.Index(section.genes))
            shared = list(expression.columns) if shared is None else [g for g in shared if g in expression.columns]
            colour = features.of(section.slide, section.spots, "colour")
            for label, rows in groups.items():
                if len(rows) < 5:
                    continue
                cases.append(f"{section.name} {label}")
                patients.append(section.patient)
                labels.append(label)
                parts.append({"expression": expression.iloc[rows].mean(), "colour": colour[rows].mean(axis=0)})
        blocks = {"expression": Columns(pd.DataFrame([part["expression"][shared].to_numpy() for part in parts]))}
        blocks["colour"] = Columns(pd.DataFrame([part["colour"] for part in parts]).astype(np.float64))
        names = tuple(sorted(set(labels)))
        outcome = Classes(np.array([names.index(label) for label in labels]), names)
        made = OutcomeCohort(name, tuple(cases), tuple(patients), outcome, blocks)
        run = compare(made, ProtocolOptions(folds=2, permutations=0))
        found[name] = rows_of(run) | {"cases": len(cases), "patients": len(set(patients))}
        print(*found[name]["said"], sep="\n", flush=True)
    return found


def main() -> None:
    """Run one part, and add it to the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["blca", "coverage", "made", "slides", "few"])
    parser.add_argument("inputs", nargs="*", type=Path)
    parser.add_argument("--work", type=Path, default=Path("outcomes-work"))
    parser.add_argument("--permutations", type=int, default=20)
    parser.add_argument("--cohorts", type=int, default=1200)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(namespace=SimpleNamespace())
    parts = {
        "blca": lambda: blca(given.inputs[0], given.permutations),
        "coverage": lambda: coverage(given.cohorts),
        "made": made,
        "slides": lambda: slides(given.work, given.permutations),
        "few": lambda: few(*given.inputs),
    }
    before = json.loads(given.out.read_text()) if given.out.exists() else {}
    given.out.write_text(json.dumps(before | {given.part: parts[given.part]()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
