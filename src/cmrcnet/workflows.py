"""Path in, path out: one short function a verb. The command line's help is these docstrings.

Past 300 lines because it is one thing: every verb of the command line side by side, its help included.
Options and outputs are checked first; only then are the heavy libraries imported, so that a slip costs no wait.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cmrcnet.config import Config, shipped_presets
from cmrcnet.errors import BadInput, BadOption, MissingInput, UnknownName
from cmrcnet.storage.atomic import atomic_file, atomic_folder, final_path, refuse_existing

if TYPE_CHECKING:
    from anndata import AnnData

    from cmrcnet.evaluation.protocol.evaluate import EvaluationRun
    from cmrcnet.inference.predictor import PredictOptions, Predictor
    from cmrcnet.readers.inspection import Inspection
    from cmrcnet.search.search_config import SearchConfig
    from cmrcnet.slides.section import Cohort


DEMO_METHODS = ("cmrcnet", "ridge", "colour-ridge", "gene-mean", "random-k", "permuted-pairs")
"""A first look: what must be beaten, and what guesses. `cmrcnet evaluate` compares all."""


def inspect(source: Path, *, mpp: float | None = None, format: str | None = None, quick: bool = False) -> bool:
    """Say what a cohort, section or slide is, and every problem with it, before any time is spent.

    Parameters
    ----------
    source : Path
        A cohort.csv, a section (folder or counts file), or a slide.
    mpp : float, optional
        Micrometres per level-0 pixel, where the slide does not say.
    format : str, optional
        Reader to use, where the section's own look is ambiguous: legacy_st, visium, hest, ann_data.
    quick : bool
        Skip what compares the sections of a cohort and reads their pixels: duplicates, wrong patients, odd stains and
        scales, spots that lie wrong.

    Returns
    -------
    bool
        True when no problem was found; the command's exit code is 1 otherwise.
    """
    from cmrcnet.readers.inspection import inspect as look

    found = look(source, mpp=mpp, format=format)
    if found.kind == "cohort" and not quick:
        found = _with_detectors(found, source, mpp)
    print(found.to_text())
    return not found.problems


def train(
    cohort: Path,
    *,
    out: Path,
    config: str = "default",
    set_: list[str] | None = None,
    without: list[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Path:
    """Train a model on paired sections.

    Parameters
    ----------
    cohort : Path
        A cohort.csv: section, patient, format, counts, spots, image, mpp, spot_diameter_um.
    out : Path
        Model folder to write. While training runs, its state lies beside it in OUT.partial.
    config : str
        Name of a shipped config (`cmrcnet presets`) or the path of your own .yaml.
    set_ : list of str, optional
        Single settings over the config: --set train.epochs=20 model.temperature=0.2
    without : list of str, optional
        Sections or patients to leave out of training.
    resume : bool
        Go on with the interrupted run in OUT.partial, exactly where it stopped.
    overwrite : bool
        Replace OUT (and forget OUT.partial).
    """
    plan = _config(config, set_)
    refuse_existing(out, overwrite)

    from cmrcnet.readers.cohort import read_cohort
    from cmrcnet.storage.cache import TokenCache
    from cmrcnet.training.checkpoint import Checkpoints
    from cmrcnet.training.fit import fit

    checkpoints = Checkpoints.beside(out, resume=resume, overwrite=overwrite)
    sections = _leave_out(read_cohort(cohort, controls=plan.panel.controls), without)
    model = fit(sections, plan, cache=TokenCache.default(), checkpoints=checkpoints, resume=resume)
    model.save(out, overwrite=overwrite)
    checkpoints.discard()
    print(
        f"Model written to {final_path(out)} "
        f"({_so_many((len(model.panel.genes), 'gene'), (len(sections), 'section'))})."
    )
    return out


def index(
    model: Path,
    cohort: Path,
    *,
    out: Path,
    without: list[str] | None = None,
    search: Literal["exact", "hnsw", "ivf", "ivf-compressed", "auto"] = "auto",
    recall: float = 0.95,
    probes: int | None = None,
    breadth: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Build the reference bank: every measured spot's embedding and full expression.

    Parameters
    ----------
    model : Path
        Model folder that `cmrcnet train` wrote.
    cohort : Path
        Sections whose measured spots predictions will be averaged from; usually those of training.
    out : Path
        Bank folder to write.
    without : list of str, optional
        Sections or patients to leave out of the bank.
    search : {"exact", "hnsw", "ivf", "ivf-compressed", "auto"}
        How the nearest spots are found. auto: exactly in a small bank, by an inverted file in a large one. All but
        exact need: pip install 'cmrcnet[ann]'
    recall : float
        Share of the true nearest spots that an approximate search must find; measured on held-out spots.
    probes : int, optional
        ivf: cells looked into; found by trying when left out.
    breadth : int, optional
        hnsw: candidates kept while walking; found by trying when left out.
    overwrite : bool
        Replace OUT.
    """
    plan = _search_plan(search, recall, probes, breadth)
    refuse_existing(out, overwrite)

    from cmrcnet.models.trained_model import TrainedModel
    from cmrcnet.readers.cohort import read_cohort
    from cmrcnet.retrieval.bank import build_bank
    from cmrcnet.storage.cache import TokenCache

    trained = TrainedModel.load(model)
    sections = _leave_out(read_cohort(cohort, controls=trained.config.panel.controls), without)
    bank = build_bank(trained, sections, cache=TokenCache.default())
    bank.save(out, overwrite=overwrite, search=plan)
    print(f"Bank written to {final_path(out)} ({_so_many((len(bank), 'spot'), (len(bank.genes), 'gene'))}).")
    return out


def bank_add(bank: Path, model: Path, cohort: Path, *, only: list[str] | None = None) -> Path:
    """Add sections to a bank, without retraining.

    Parameters
    ----------
    bank : Path
        Bank folder; edited in place, and readers of it are not disturbed.
    model : Path
        The model that made the bank.
    cohort : Path
        A cohort.csv.
    only : list of str, optional
        Sections or patients of the cohort to add; all when left out.
    """
    from cmrcnet.models.trained_model import TrainedModel
    from cmrcnet.readers.cohort import read_cohort
    from cmrcnet.retrieval.edit import add_sections
    from cmrcnet.retrieval.manifest import Manifest

    Manifest.read(bank)
    trained = TrainedModel.load(model)
    sections = read_cohort(cohort, controls=trained.config.panel.controls)
    if only:
        others = set(sections.sections) - set(_sections_named(sections, only, "only"))
        sections = sections.without([section for section in sections.sections if section in others])
    added = add_sections(bank, trained, sections)
    print(f"Added to {bank}: {', '.join(added)}. It holds {_so_many((Manifest.read(bank).spots, 'spot'))} now.")
    return bank


def bank_drop(bank: Path, names: list[str]) -> Path:
    """Take sections or patients out of a bank; nothing of them is left in its folder.

    Parameters
    ----------
    bank : Path
        Bank folder; edited in place. Copies of it, backups and prediction tables made with it are not touched.
    names : list of str
        Sections, or patients: all their sections.
    """
    from cmrcnet.retrieval.edit import drop_sections
    from cmrcnet.retrieval.manifest import Manifest

    dropped = drop_sections(bank, names)
    print(f"Dropped from {bank}: {', '.join(dropped)}. It holds {_so_many((Manifest.read(bank).spots, 'spot'))} now.")
    return bank


def bank_list(bank: Path) -> None:
    """List the sections of a bank, and how it is searched.

    Parameters
    ----------
    bank : Path
        Bank folder.
    """
    from cmrcnet.retrieval.manifest import Manifest

    manifest = Manifest.read(bank)
    print(f"{'section':24}{'patient':24}{'spots':>10}{'genes':>10}")
    for facts in manifest.parts:
        print(f"{facts['section']:24}{facts['patient']:24}{facts['spots']:>10,}{facts['genes']:>10,}")
    so_many = _so_many((len(manifest.parts), "section"), (manifest.spots, "spot"))
    print(f"{so_many}; {manifest.search_text()}.")


def bank_merge(
    banks: list[Path],
    *,
    out: Path,
    search: Literal["exact", "hnsw", "ivf", "ivf-compressed", "auto"] = "auto",
    recall: float = 0.95,
    overwrite: bool = False,
) -> Path:
    """Put several banks of one model together; a section that several hold alike counts once.

    Parameters
    ----------
    banks : list of Path
        Bank folders; they stay as they are.
    out : Path
        Bank folder to write.
    search : {"exact", "hnsw", "ivf", "ivf-compressed", "auto"}
        As in `cmrcnet index`.
    recall : float
        As in `cmrcnet index`.
    overwrite : bool
        Replace OUT.
    """
    plan = _search_plan(search, recall, None, None)
    refuse_existing(out, overwrite)

    from cmrcnet.retrieval.bank import ReferenceBank
    from cmrcnet.retrieval.edit import merge_banks

    merged = merge_banks([ReferenceBank.load(bank) for bank in banks])
    merged.save(out, overwrite=overwrite, search=plan)
    print(f"Bank written to {out} ({_so_many((len(merged), 'spot'), (len(merged.genes), 'gene'))}).")
    return out


def bank_search(
    bank: Path,
    *,
    search: Literal["exact", "hnsw", "ivf", "ivf-compressed", "auto"] = "auto",
    recall: float = 0.95,
    probes: int | None = None,
    breadth: int | None = None,
) -> Path:
    """Give a bank another search, or make its own anew.

    Parameters
    ----------
    bank : Path
        Bank folder; edited in place.
    search : {"exact", "hnsw", "ivf", "ivf-compressed", "auto"}
        As in `cmrcnet index`.
    recall : float
        As in `cmrcnet index`.
    probes : int, optional
        As in `cmrcnet index`.
    breadth : int, optional
        As in `cmrcnet index`.
    """
    plan = _search_plan(search, recall, probes, breadth)

    from cmrcnet.retrieval.edit import search_anew

    print(f"{bank}: {search_anew(bank, plan).search_text()}.")
    return bank


def predict(
    model: Path,
    slide: Path,
    *,
    out: Path,
    bank: Path | None = None,
    section: str | None = None,
    spots: Path | None = None,
    mask: Path | None = None,
    genes: list[str] | None = None,
    k: int | None = None,
    grid_um: float = 100.0,
    batch: int | Literal["auto"] = "auto",
    intervals: bool = False,
    abstain: float | None = None,
    mpp: float | None = None,
    overwrite: bool = False,
) -> Path | bool:
    """Predict expression on a slide that has none, or on a folder of them.

    A slide is read and written part by part. After an interrupt or a crash the same command goes on where it stopped.

    Parameters
    ----------
    model : Path
        Model folder; or the folder of a student (`cmrcnet distil`), which needs no bank and gives no neighbours,
        intervals or translate_os_errors.
    slide : Path
        A slide or picture (SVS, NDPI, MRXS, TIFF, OME-TIFF, JPEG, PNG); or a cohort.csv together with --section; or
        a folder of slides, or a pattern in quotes ("slides/*.svs").
    out : Path
        Prediction table to write: .h5ad opens in scanpy and squidpy, .zarr in SpatialData and LazySlide (needs
        cmrcnet[spatialdata]). Of many slides: a folder, with a table a slide and summary.csv; slides that are done
        are skipped, broken ones reported at the end (exit code 1). Several machines may work on one folder.
    bank : Path, optional
        Bank folder that `cmrcnet index` made with this model. Only a student predicts without one.
    section : str, optional
        Section of the cohort.csv; its picture and the locations of its spots are used, its counts never.
    spots : Path, optional
        Table of locations to predict (columns pixel_x, pixel_y in level-0 pixels) in place of a grid over the tissue.
    mask : Path, optional
        Picture of the whole slide, at any size, in which tissue is white, in place of the tissue found.
    genes : list of str, optional
        Genes to predict, or one file with a gene a line; all that the bank measured when left out.
    k : int, optional
        Measured spots averaged for one location; the model's own choice when left out.
    grid_um : float
        Distance between the locations of the grid.
    batch : int or "auto"
        Patches that go through the encoder at once; auto suits the device.
    intervals : bool
        Write the calibrated 90 % interval of every value as well (layers lower and upper); three times the size.
    abstain : float, optional
        Mark locations that are less certain than this share of validation spots: --abstain 0.3.
    mpp : float, optional
        Micrometres per level-0 pixel, where the slide does not say.
    overwrite : bool
        Replace OUT.
    """
    from cmrcnet.inference.slide_batch import predict_slides, slides_of

    slides = slides_of(slide)
    if slides is None:
        if out.suffix not in (".h5ad", ".zarr"):
            raise BadOption("out", str(out), "a file name that ends in .h5ad, or .zarr")
        refuse_existing(out, overwrite)

    from cmrcnet.inference.predict import predict_to_file
    from cmrcnet.inference.predictor import PredictOptions
    from cmrcnet.readers.annotations import read_mask
    from cmrcnet.storage.cache import TokenCache

    chosen = _gene_list(genes)
    options = {"genes": chosen, "k": k, "grid_um": grid_um, "intervals": intervals, "abstain": abstain}
    if slides is not None:
        for name, value in (("section", section), ("spots", spots), ("mask", mask)):
            if value is not None:
                raise BadOption(name, str(value), "nothing together with many slides")
        done = predict_slides(
            _predictor(model, bank, PredictOptions(**options)),
            slides,
            out,
            batch=batch,
            mpp=mpp,
            cache=TokenCache.default(),
            overwrite=overwrite,
        )
        print(done.to_text())
        return out if not done.broken else False
    picture, locations = _where_to_predict(slide, section, spots, mpp)
    tissue = None if mask is None else read_mask(mask, picture)
    predictor = _predictor(model, bank, PredictOptions(spots=locations, mask=tissue, **options))
    count, width = predict_to_file(predictor, picture, out, cache=TokenCache.default(), batch=batch)
    size = _so_many((count, "location"), (width, "gene"))
    print(f"Prediction written to {final_path(out)} ({size}).")
    return out


def distil(
    model: Path,
    bank: Path,
    *,
    out: Path,
    cohort: Path | None = None,
    slides: list[Path] | None = None,
    encoder: str | None = None,
    weights: str = "pretrained",
    orientations: int | None = None,
    views: list[float] | None = None,
    patch_px: int | None = None,
    grid_um: float = 200.0,
    test: Path | None = None,
    mpp: float | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Distil a model and its bank into a student: a small head that predicts without bank and search.

    The student is taught what MODEL and BANK say on the bank's own slides, each section by the bank without it. Its
    card tells what it lost and how much faster it is: measured on sections that are left out, and on --test. Encoding
    takes most of the time; a student is really faster when it looks with less: --orientations 1, --views 112,
    --encoder, --patch-px. It has no attributions, intervals or translate_os_errors. It remembers the patients of
    MODEL and BANK: one
    who is dropped from the bank later is still in the student, which then must be distilled anew.

    Parameters
    ----------
    model : Path
        Model folder: the teacher.
    bank : Path
        Its bank folder.
    out : Path
        Student folder to write; give it to `cmrcnet predict` in place of a model.
    cohort : Path, optional
        The cohort.csv that the bank was built from: its slides are looked at again, its counts judge the student. The
        bank remembers where it was; needed when it has moved.
    slides : list of Path, optional
        Further slides to learn on; they need no counts. Files, folders or patterns.
    encoder : str, optional
        Image encoder of the student, frozen (`cmrcnet encoders`); its teacher's when left out.
    weights : str
        Of --encoder: pretrained, random, or a local safetensors file.
    orientations : int, optional
        Ways to turn a patch, 1 to 8; the teacher's when left out.
    views : list of float, optional
        Sides of the views in micrometres; the teacher's when left out.
    patch_px : int, optional
        Pixels that a patch is resized to; it shows the same tissue. The teacher's when left out.
    grid_um : float
        Distance between the locations to learn on besides the measured spots; 0: spots only.
    test : Path, optional
        A cohort.csv of sections that neither model nor bank has seen, nor their patients: honest values for the card.
    mpp : float, optional
        Micrometres per level-0 pixel of --slides, where they do not say.
    seed : int
        Of every random choice.
    overwrite : bool
        Replace OUT.
    """
    refuse_existing(out, overwrite)

    from cmrcnet.distill.distil import distil as teach
    from cmrcnet.distill.student_config import StudentLook
    from cmrcnet.distill.student_report import card_text
    from cmrcnet.inference.slide_batch import slides_of
    from cmrcnet.models.trained_model import TrainedModel
    from cmrcnet.readers.cohort import read_cohort
    from cmrcnet.retrieval.bank import ReferenceBank
    from cmrcnet.retrieval.bank_cohort import cohort_of_bank
    from cmrcnet.slides.slide import open_slide
    from cmrcnet.storage.cache import TokenCache

    trained = TrainedModel.load(model)
    controls = trained.config.panel.controls
    found = [path for each in slides or [] for path in slides_of(each) or [each]]
    measured = ReferenceBank.load(bank)
    student = teach(
        trained,
        measured,
        cohort_of_bank(measured, controls=controls) if cohort is None else read_cohort(cohort, controls=controls),
        slides=[open_slide(path, mpp=mpp) for path in found],
        look=StudentLook(
            encoder=encoder, weights=weights, orientations=orientations, views_um=views, patch_px=patch_px
        ),
        grid_um=grid_um,
        test=None if test is None else read_cohort(test, controls=controls),
        seed=seed,
        cache=TokenCache.default(),
    )
    student.save(out, overwrite=overwrite)
    print(card_text(student.card))
    print(f"Student written to {final_path(out)} ({_so_many((len(student.genes), 'gene'))}).")
    return out


def export(
    prediction: Path,
    *,
    to: Path,
    genes: list[str] | None = None,
    slide: Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Turn a prediction table into what other programs open.

    Parameters
    ----------
    prediction : Path
        A prediction table (.h5ad) that `cmrcnet predict` wrote.
    to : Path
        File to write: .geojson for QuPath, .png for heat-maps, .ome.tiff for one channel a gene, .zarr for
        SpatialData and LazySlide (needs cmrcnet[spatialdata]).
    genes : list of str, optional
        Genes to show, or one file with a gene a line; the six that vary most when left out. A .zarr holds all.
    slide : Path, optional
        The slide, for the picture in a .zarr; the small one that the table carries when left out.
    overwrite : bool
        Replace TO.
    """
    from cmrcnet.export.formats import ending_of
    from cmrcnet.export.formats import export as write
    from cmrcnet.export.stored_prediction import StoredPrediction
    from cmrcnet.slides.slide import open_slide

    ending_of(to)
    refuse_existing(to, overwrite)
    with StoredPrediction(prediction) as table:
        picture = None if slide is None else open_slide(slide, mpp=float(table.facts["mpp"]))
        write(table, to, genes=_gene_list(genes), slide=picture, overwrite=overwrite)
    print(f"Written to {final_path(to)}.")
    return to


def explain(
    prediction: Path,
    *,
    spot: str,
    out: Path,
    cohort: Path | None = None,
    slide: Path | None = None,
    genes: list[str] | None = None,
    mpp: float | None = None,
    overwrite: bool = False,
) -> Path:
    """Explain one predicted place on one sheet: its patch, the measured spots behind it, what they measured.

    Parameters
    ----------
    prediction : Path
        A prediction table (.h5ad).
    spot : str
        Name of the place, as in the table's obs_names.
    out : Path
        Sheet to write: .png, .pdf or .svg; or .csv for the bare list of all measured spots and their weights.
    cohort : Path, optional
        The cohort.csv that the bank was built from, for the patches and measured values of the matches.
    slide : Path, optional
        The slide that was predicted, where the cohort does not hold it.
    genes : list of str, optional
        Genes to show, at most eight, or one file with a gene a line; the best graded when left out.
    mpp : float, optional
        Micrometres per level-0 pixel, where the slide does not say.
    overwrite : bool
        Replace OUT.
    """
    kind = out.suffix.removeprefix(".")
    if kind not in ("png", "pdf", "svg", "csv"):
        raise BadOption("out", str(out), "a file name that ends in .png, .pdf, .svg or .csv")
    refuse_existing(out, overwrite)

    from cmrcnet.analysis.attribution import attribution
    from cmrcnet.analysis.attribution_sheet import attribution_sheet
    from cmrcnet.readers.ann_data import read_location
    from cmrcnet.readers.cohort import read_cohort
    from cmrcnet.slides.slide import open_slide

    table = read_location(prediction, spot)
    with atomic_file(out) as tmp:
        if kind == "csv":
            attribution(table, spot).spots.to_csv(tmp, index=False)
        else:
            sheet = attribution_sheet(
                table,
                spot,
                genes=_gene_list(genes),
                cohort=None if cohort is None else read_cohort(cohort),
                slide=None if slide is None else open_slide(slide, mpp=mpp),
                kind=kind,
            )
            tmp.write_bytes(sheet)
    print(f"{final_path(out)}: {attribution(table, spot).sentence}")
    return out


def evaluate(
    cohort: Path,
    *,
    out: Path,
    config: str = "default",
    set_: list[str] | None = None,
    protocol: Literal["strict", "paper"] = "strict",
    group_by: Literal["patient", "section"] | None = None,
    methods: list[str] | None = None,
    seeds: int = 1,
    folds: list[str] | None = None,
    workers: int | Literal["auto"] = "auto",
    resume: bool = False,
    overwrite: bool = False,
) -> Path:
    """Measure honestly: leave one patient (or section) out, train on the others, predict it, score it.

    Parameters
    ----------
    cohort : Path
        A cohort.csv.
    out : Path
        Run folder to write: report.html, scores.csv, genes.csv, trust.csv, predictions/, run.json.
    config : str
        Name of a shipped config (`cmrcnet presets`) or the path of your own .yaml.
    set_ : list of str, optional
        Single settings over the config: --set train.epochs=20 head.k=100
    protocol : {"strict", "paper"}
        strict: scored genes are fixed on training sections. paper: as published studies do it, a section left out, HEG
        and HVG those of the test truth, the panel chosen on all sections; stamped on the report.
    group_by : {"patient", "section"}, optional
        What each fold leaves out. Leaving out a section while its patient trains is stamped on the report.
    methods : list of str, optional
        Methods to compare, with spaces or commas between them; all that ship when left out.
    seeds : int
        Run everything with so many seeds, from the config's own on; scores are means over them.
    folds : list of str, optional
        Run only the folds that leave these patients (or sections) out; stamped on the report.
    workers : int or "auto"
        Processes side by side; auto takes one a core. The scores do not depend on it.
    resume : bool
        Go on with the interrupted run in OUT.partial: finished folds, methods and seeds are not run again.
    overwrite : bool
        Replace OUT.
    """
    run = _evaluate(
        cohort, out, config, set_, protocol, group_by, _each(methods), seeds, folds, workers, resume, overwrite
    )
    from cmrcnet.evaluation.protocol.run_metadata import time_text

    print(run.to_text())
    print(time_text(run.facts["time"]))
    print(f"Report: {out / 'report.html'}")
    return out


def sweep(
    cohort: Path,
    *,
    out: Path,
    config: str = "default",
    set_: list[str] | None = None,
    over: list[str] | None = None,
    preset: str | None = None,
    ablate: bool = False,
    one_at_a_time: bool = False,
    only: list[str] | None = None,
    methods: list[str] | None = None,
    protocol: Literal["strict", "paper"] = "strict",
    group_by: Literal["patient", "section"] | None = None,
    seeds: int = 1,
    folds: list[str] | None = None,
    workers: int | Literal["auto"] = "auto",
    resume: bool = False,
    overwrite: bool = False,
) -> Path:
    """Evaluate a config with some settings varied: sweeps, ablations, and the departures of the released code.

    Parameters
    ----------
    cohort : Path
        A cohort.csv.
    out : Path
        Sweep folder to write: sweep.html, sweep.csv, sweep.json, plots, and the scores of each cell.
    config : str
        Base config: name or path of a .yaml.
    set_ : list of str, optional
        Single settings of the base: --set train.epochs=20
    over : list of str, optional
        Settings to vary, with their values: --over model.mask_rate=0,0.3,0.5 --over head.k=10,50
    preset : str, optional
        A sweep that ships, in place of --over: ablation, mask, k, reconstruct, departures.
    ablate : bool
        The same as --preset ablation: contrastive training alone against the full config.
    one_at_a_time : bool
        Each value alone against the base; otherwise every value of a key with every value of the others.
    only : list of str, optional
        Run only these cells (and the base), by the names that sweep.csv gives them.
    methods : list of str, optional
        Methods to run in each cell besides cmrcnet.
    protocol : {"strict", "paper"}
        As in `cmrcnet evaluate`.
    group_by : {"patient", "section"}, optional
        What each fold leaves out.
    seeds : int
        Run every cell with so many seeds.
    folds : list of str, optional
        Run only these folds.
    workers : int or "auto"
        Processes side by side.
    resume : bool
        Go on with the interrupted sweep in OUT.partial: finished cells, folds and seeds are not run again.
    overwrite : bool
        Replace OUT.
    """
    from cmrcnet.evaluation.sweep.sweep_plan import plan_over, preset_plan, read_axes

    base = _config(config, set_)
    if sum([bool(over), preset is not None, ablate]) != 1:
        raise BadOption("over", over or "", "one of --over KEY=a,b,c, --preset NAME and --ablate")
    if over:
        plan = plan_over(base, read_axes(over), one_at_a_time=one_at_a_time)
    else:
        plan = preset_plan(base, preset or "ablation")
    plan = plan.only(only)

    from cmrcnet.evaluation.sweep.run_sweep import sweep as run_sweep
    from cmrcnet.evaluation.sweep.sweep_folder import SweepFolder
    from cmrcnet.evaluation.sweep.sweep_report import write_sweep
    from cmrcnet.readers.cohort import read_cohort
    from cmrcnet.storage.cache import TokenCache

    def cohort_of(controls: Literal["drop", "keep"]) -> Cohort:
        return read_cohort(cohort, controls=controls)

    cohort_of("drop")
    folder = SweepFolder(out, overwrite=overwrite, resume=resume)
    run = run_sweep(
        cohort_of,
        plan,
        folder,
        TokenCache.default(),
        methods=_each(methods) or (),
        protocol=protocol,
        unit=group_by,
        seeds=seeds,
        only=folds,
        workers=workers,
    )
    write_sweep(run, folder)
    folder.finish(run.facts)
    print(run.to_text())
    print(f"Report: {out / 'sweep.html'}")
    return out


def transfer(
    train: Path,
    tests: list[Path],
    *,
    out: Path,
    config: str = "default",
    set_: list[str] | None = None,
    methods: list[str] | None = None,
    group_by: Literal["patient", "section"] | None = None,
    seeds: int = 1,
    workers: int | Literal["auto"] = "auto",
    resume: bool = False,
    overwrite: bool = False,
) -> Path:
    """Train on one cohort and test on others; the scores inside each cohort stand beside it, and the drop.

    Parameters
    ----------
    train : Path
        The cohort.csv to train on.
    tests : list of Path
        Cohorts to test on: TRAIN.csv TEST.csv TEST2.csv
    out : Path
        Folder to write: transfer.html, transfer.csv, transfer.json, and the scores of each part.
    config : str
        Name of a shipped config or the path of your own .yaml.
    set_ : list of str, optional
        Single settings over the config.
    methods : list of str, optional
        Methods to run besides cmrcnet.
    group_by : {"patient", "section"}, optional
        What each fold inside a cohort leaves out; sections where a cohort has one patient.
    seeds : int
        Run everything with so many seeds.
    workers : int or "auto"
        Processes side by side.
    resume : bool
        Go on with the interrupted run in OUT.partial.
    overwrite : bool
        Replace OUT.
    """
    plan = _config(config, set_)

    from cmrcnet.evaluation.sweep.sweep_folder import SweepFolder
    from cmrcnet.evaluation.sweep.transfer import transfer as run_transfer
    from cmrcnet.evaluation.sweep.transfer_report import write_transfer
    from cmrcnet.readers.cohort import read_cohort
    from cmrcnet.storage.cache import TokenCache

    source, *targets = [read_cohort(csv, controls=plan.panel.controls) for csv in (train, *tests)]
    folder = SweepFolder(out, last="transfer.json", overwrite=overwrite, resume=resume)
    run = run_transfer(
        source,
        targets,
        plan,
        folder,
        TokenCache.default(),
        methods=_each(methods) or (),
        unit=group_by,
        seeds=seeds,
        workers=workers,
    )
    write_transfer(run, folder)
    folder.finish(run.facts)
    print(run.to_text())
    print(f"Report: {out / 'transfer.html'}")
    return out


def localise(
    prediction: Path,
    cohort: Path,
    *,
    section: str | None = None,
    organ: str | None = None,
    merge: bool = False,
    out: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Say how well predicted marker genes find labelled regions again, beside the measured ones (the ceiling).

    Parameters
    ----------
    prediction : Path
        A prediction table (.h5ad) made at the spots of one section, or the run folder of an evaluation.
    cohort : Path
        A cohort.csv whose column `regions` names each section's table of labels (columns spot, region).
    section : str, optional
        Section that the table predicts; the name of its file when left out.
    organ : str, optional
        Whose marker list is used: breast, colorectal, liver, skin, spinal cord. Told from the column `disease` when
        left out.
    merge : bool
        Merge regions that differ in a number or a part only: "cancer 1" and "cancer 2".
    out : Path, optional
        Table of every region and signature to write (.csv).
    overwrite : bool
        Replace OUT.
    """
    if out is not None:
        if out.suffix != ".csv":
            raise BadOption("out", str(out), "a file name that ends in .csv")
        refuse_existing(out, overwrite)

    from cmrcnet.analysis.localisation import localisation_text, localise_cohort
    from cmrcnet.genes.markers import markers, organ_of_cohort, source_lines
    from cmrcnet.readers.annotations import read_cohort_regions
    from cmrcnet.readers.cohort import read_cohort

    tables = _predicted_sections(prediction, section)
    regions, sections = read_cohort_regions(cohort), read_cohort(cohort)
    chosen = markers(organ or organ_of_cohort(sections))
    table = localise_cohort(tables, sections, regions, chosen, merge=merge)
    print(localisation_text(table))
    shown = table["signature"][table["expected"]].unique()
    print("\n".join([f"Markers: {chosen.organ}, version {chosen.version}.", *source_lines(chosen, shown)]))
    if out is not None:
        with atomic_file(out) as tmp:
            table.to_csv(tmp, index=False)
        print(f"Table written to {out} ({len(table)} rows).")


def fetch(
    source: Literal["hest"],
    *,
    task: str,
    out: Path,
    slides: bool = False,
    revision: str | None = None,
    accept_licence: bool = False,
) -> Path:
    """Fetch a public cohort: shows its licence, checks every file, goes on where it was interrupted.

    Parameters
    ----------
    source : {"hest"}
        HEST-1k on the Hugging Face Hub; it is gated, so ask for access there first and log in.
    task : str
        COAD, IDC, LYMPH_IDC, READ, SKCM or PSC; or your own .yaml with a section `task`.
    out : Path
        Folder to write: cohort.csv, the files, their checksums. Give it again to go on with an interrupted fetch.
    slides : bool
        The whole slides too (several GiB); without them the patches of 112 um serve as the slide.
    revision : str, optional
        Commit or tag of the repository; the newest when left out.
    accept_licence : bool
        You have read the licence of the data (CC BY-NC-SA 4.0) and keep to it.
    """
    from cmrcnet.datasets.hest import fetch_hest, hest_task

    table = fetch_hest(task, out, accept_licence=accept_licence, slides=slides, revision=revision)
    print(f"Cohort written to {table}. Next: cmrcnet evaluate {table} --config {hest_task(task).config} --out RUN")
    return table


def demo(*, out: Path = Path("demo"), data: Path | None = None, config: str = "tiny", overwrite: bool = False) -> Path:
    """Run the whole journey once and write a report to open.

    Trains and scores leaving one patient out at a time, then trains on all but one slide and predicts that slide from
    its picture alone. Without --data this happens on synthetic tissue whose right answer is known.

    Parameters
    ----------
    out : Path
        Folder to write: report.html, evaluation/, model/, bank/, unseen.h5ad.
    data : Path, optional
        A cohort.csv of real sections in place of the synthetic ones; its last section is the unseen slide.
    config : str
        Config to run; `default` takes a few times longer and predicts better.
    overwrite : bool
        Replace OUT.
    """
    import json

    from cmrcnet.datasets.synthetic import synthetic_cohort, synthetic_slide, write_cohort, write_slide
    from cmrcnet.evaluation.report.evaluation_report import write_report
    from cmrcnet.readers.cohort import read_cohort

    with atomic_folder(out, overwrite) as folder:
        (folder / "demo.json").write_text(json.dumps({"format": 1, "config": config, "data": str(data or "synthetic")}))
        if data is None:
            table, hidden = write_cohort(synthetic_cohort(), folder / "cohort"), []
            unseen, scale = write_slide(synthetic_slide(), folder / "unseen.png")
        else:
            cohort = read_cohort(data)
            table, hidden = data, [cohort.sections[-1]]
            picture = cohort.read(hidden[0]).slide
            unseen, scale = picture.path, picture.mpp
        run = _evaluate(table, folder / "evaluation", config, methods=list(DEMO_METHODS))
        train(table, out=folder / "model", config=config, without=hidden)
        index(folder / "model", table, out=folder / "bank", without=hidden)
        predict(folder / "model", unseen, bank=folder / "bank", out=folder / "unseen.h5ad", mpp=scale)
        write_report(run, folder / "report.html", unseen=folder / "unseen.h5ad")
    print(f"Open {out / 'report.html'}")
    return out


def presets(name: str | None = None) -> None:
    """List the presets that ship, or show one with every setting.

    Parameters
    ----------
    name : str, optional
        Config to show in full; its output is a .yaml that you can edit and pass to --config.
    """
    if name is not None:
        import yaml

        print(yaml.safe_dump(Config.load(name).to_dict(), sort_keys=False, allow_unicode=True), end="")
        return
    for each in shipped_presets():
        print(f"{each:20}{Config.load(each).about}")


def encoders() -> None:
    """List the image encoders, their scale, licence, and where their weights come from."""
    from cmrcnet.models.encoder_registry import image_encoders, pretrained_config
    from cmrcnet.models.pretrained_configs import WITHHELD

    for card in map(pretrained_config, image_encoders()):
        print(f"{card.name:20}{card.n_tokens} tokens x {card.dim}, {card.mpp:g} um per px, {card.licence}")
        print(f"{'':20}{card.source}; {card.note}")
    for name, reason in WITHHELD.items():
        print(f"{name:20}not offered: {reason}")
    print(f"{'timm:NAME':20}any timm model, by its name there")
    print(f"{'hf-hub:ORG/NAME':20}any timm model on the Hugging Face hub, where it can be reached")


def _with_detectors(found: Inspection, source: Path, mpp: float | None) -> Inspection:
    """Add what the detectors find: certain things to the problems, suspicions to the notes."""
    from dataclasses import replace

    from cmrcnet.qc.cohort_check import check_cohort
    from cmrcnet.readers.cohort import read_cohort

    if found.problems:
        note = "Sections were not compared (duplicates, patients, stain, locations of spots): mend the problems first."
        return replace(found, notes=(*found.notes, note))
    seen = check_cohort(read_cohort(source, mpp=mpp))
    return replace(
        found,
        notes=(*found.notes, *(each.sentence for each in seen if not each.certain)),
        problems=tuple(each.sentence for each in seen if each.certain),
    )


def _evaluate(
    cohort: Path,
    out: Path,
    config: str,
    set_: list[str] | None = None,
    protocol: Literal["strict", "paper"] = "strict",
    group_by: Literal["patient", "section"] | None = None,
    methods: list[str] | None = None,
    seeds: int = 1,
    folds: list[str] | None = None,
    workers: int | Literal["auto"] = "auto",
    resume: bool = False,
    overwrite: bool = False,
) -> EvaluationRun:
    """Run the protocol into a run folder and write its report."""
    plan = _config(config, set_)

    from cmrcnet.evaluation.metrics.trust_scores import trust_scores
    from cmrcnet.evaluation.protocol.evaluate import evaluate as run_protocol
    from cmrcnet.evaluation.protocol.run_folder import RunFolder
    from cmrcnet.evaluation.report.evaluation_report import write_report
    from cmrcnet.readers.cohort import read_cohort
    from cmrcnet.storage.cache import TokenCache

    sections = read_cohort(cohort, controls=plan.panel.controls)
    folder = RunFolder(out, overwrite=overwrite, resume=resume)
    run = run_protocol(
        sections,
        plan,
        methods=methods,
        protocol=protocol,
        unit=group_by,
        seeds=seeds,
        only=folds,
        workers=workers,
        cache=TokenCache.default(),
        folder=folder,
    )
    if len(measured := trust_scores(run)):
        with atomic_file(folder.working / "trust.csv") as tmp:
            measured.to_csv(tmp, index=False)
    write_report(run, folder.working / "report.html")
    folder.finish()
    return run


def _config(name: str, settings: list[str] | None) -> Config:
    given = {}
    for setting in settings or []:
        key, equals, value = setting.partition("=")
        if not equals:
            raise BadOption("set", setting, "KEY=VALUE, as in --set train.epochs=20")
        given[key.strip()] = value.strip()
    return Config.load(name).override(given)


def _search_plan(search: str, recall: float, probes: int | None, breadth: int | None) -> SearchConfig:
    from cmrcnet.search.search_config import SearchConfig

    return SearchConfig(kind=search, recall=recall, probes=probes, breadth=breadth)


def _leave_out(cohort: Cohort, names: list[str] | None) -> Cohort:
    """The cohort without these sections or patients."""
    return cohort.without(_sections_named(cohort, names or [], "without"))


def _sections_named(cohort: Cohort, names: list[str], option: str) -> list[str]:
    """Sections that are named by themselves or by their patient."""
    found = []
    for name in names:
        of_patient = [section for section in cohort.sections if cohort.patient_of(section) == name]
        if not of_patient and name not in cohort.sections:
            raise BadOption(option, name, f"a section or patient of {cohort.name}")
        found += of_patient or [name]
    return found


def _predictor(model: Path, bank: Path | None, options: PredictOptions) -> Predictor:
    """A model with its bank, or a student, which takes no bank and none of the bank's options."""
    from cmrcnet.inference.predictor import BANK_OPTIONS, make_predictor
    from cmrcnet.models.student import FILE, Student

    if (model / FILE).is_file():
        given = {"bank": None if bank is None else str(bank)} | {name: getattr(options, name) for name in BANK_OPTIONS}
        for name, value in given.items():
            if value not in (None, False):
                raise BadOption(f"--{name}", value, f"nothing with a student ({model}), which has no bank")
        return make_predictor(Student.load(model), None, options)
    if bank is None:
        raise BadOption("--bank", "left out", "the bank folder made with this model; only a student needs none")

    from cmrcnet.models.trained_model import TrainedModel
    from cmrcnet.retrieval.bank import ReferenceBank

    return make_predictor(TrainedModel.load(model), ReferenceBank.load(bank), options)


def _where_to_predict(slide: Path, section: str | None, spots: Path | None, mpp: float | None):
    """The slide and, where they were given, the locations on it. A section's counts go no further than here."""
    from cmrcnet.readers.cohort import read_cohort
    from cmrcnet.slides.slide import open_slide

    if section is not None:
        for name, value in (("spots", spots), ("mpp", mpp)):
            if value is not None:
                raise BadOption(name, str(value), "nothing together with --section: the cohort file says it")
        found = read_cohort(slide).read(section)
        return found.slide, found.spots
    if not slide.exists():
        raise MissingInput(slide, "The slide")
    if slide.suffix == ".csv":
        raise BadOption("slide", str(slide), "a slide, or a cohort.csv together with --section NAME")
    picture = open_slide(slide, mpp=mpp)
    if spots is None:
        return picture, None
    from cmrcnet.readers.annotations import read_spots

    return picture, read_spots(spots)


def _predicted_sections(prediction: Path, section: str | None) -> dict[str, AnnData]:
    """Prediction tables by section: of one file, or of every section of a run folder."""
    import anndata

    folder = prediction / "predictions"
    if prediction.is_dir():
        files = {file.stem: file for file in sorted(folder.glob("*.h5ad"))}
        if not files:
            raise MissingInput(folder, "The prediction tables of the run in", "give a finished run folder or an .h5ad")
        if section is not None:
            if section not in files:
                raise UnknownName("section", section, tuple(files))
            files = {section: files[section]}
    elif prediction.is_file():
        files = {section or prediction.stem: prediction}
    else:
        raise MissingInput(prediction, "The prediction table")
    try:
        return {name: anndata.read_h5ad(file) for name, file in files.items()}
    except (OSError, KeyError, ValueError) as error:
        lines = str(error).splitlines()
        raise BadInput(prediction, "a prediction table", lines[0][:120] if lines else type(error).__name__) from error


def _gene_list(genes: list[str] | None) -> list[str] | None:
    """Genes as named, with commas or blanks between them, or those of one file."""
    if genes is None or len(genes) != 1 or not Path(genes[0]).is_file():
        return _each(genes)
    return Path(genes[0]).read_text().split()


def _each(names: list[str] | None) -> list[str] | None:
    """Names given with commas between them, one by one."""
    if names is None:
        return None
    return [name.strip() for each in names for name in each.split(",") if name.strip()]


def _so_many(*counts: tuple[int, str]) -> str:
    """1 gene, 2,000 spots."""
    return ", ".join(f"{count:,} {what}" if count == 1 else f"{count:,} {what}s" for count, what in counts)
