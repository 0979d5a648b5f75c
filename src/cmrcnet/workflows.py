"""Path in, path out: one short function a verb. The command line's help is these docstrings.

Past 300 lines because it is one thing: every verb of the command line side by side, its help included.
Options and outputs are checked first; only then are the heavy libraries imported, so that a slip costs no wait.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cmrcnet.atomic import atomic_file, atomic_folder, lasting, refuse_existing
from cmrcnet.errors import BadOption, NoSuchFile
from cmrcnet.recipe import Recipe, shipped_recipes

if TYPE_CHECKING:
    from cmrcnet.evaluation.protocol import EvaluationRun
    from cmrcnet.tissue.section import Cohort


def inspect(source: Path, *, um_per_px: float | None = None, format: str | None = None) -> bool:
    """Say what a cohort, section or slide is, and every problem with it, before any time is spent.

    Parameters
    ----------
    source : Path
        A cohort.csv, a section (folder or counts file), or a slide.
    um_per_px : float, optional
        Micrometres per level-0 pixel, where the slide does not say.
    format : str, optional
        Reader to use, where the section's own look is ambiguous: legacy_st, visium, hest, ann_data.

    Returns
    -------
    bool
        True when no problem was found; the command's exit code is 1 otherwise.
    """
    from cmrcnet.readers.inspection import inspect as look

    found = look(source, um_per_px=um_per_px, format=format)
    print(found.to_text())
    return not found.problems


def train(
    cohort: Path,
    *,
    out: Path,
    recipe: str = "default",
    set_: list[str] | None = None,
    without: list[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Path:
    """Train a model on paired sections.

    Parameters
    ----------
    cohort : Path
        A cohort.csv: section, patient, format, counts, spots, image, um_per_px, spot_diameter_um.
    out : Path
        Model folder to write. While training runs, its state lies beside it in OUT.partial.
    recipe : str
        Name of a shipped recipe (`cmrcnet recipes`) or the path of your own .yaml.
    set_ : list of str, optional
        Single settings over the recipe: --set train.epochs=20 model.temperature=0.2
    without : list of str, optional
        Sections or patients to leave out of training.
    resume : bool
        Go on with the interrupted run in OUT.partial, exactly where it stopped.
    overwrite : bool
        Replace OUT (and forget OUT.partial).
    """
    plan = _recipe(recipe, set_)
    refuse_existing(out, overwrite)

    from cmrcnet.encoding.token_cache import TokenCache
    from cmrcnet.readers.cohort import read_cohort
    from cmrcnet.training.checkpoint import Checkpoints
    from cmrcnet.training.fit import fit

    checkpoints = Checkpoints.beside(out, resume=resume, overwrite=overwrite)
    sections = _leave_out(read_cohort(cohort, controls=plan.panel.controls), without)
    model = fit(sections, plan, cache=TokenCache.default(), checkpoints=checkpoints, resume=resume)
    model.save(out, overwrite=overwrite)
    checkpoints.discard()
    print(f"Model written to {lasting(out)} ({len(model.panel.genes)} genes, {len(sections)} sections).")
    return out


def index(model: Path, cohort: Path, *, out: Path, without: list[str] | None = None, overwrite: bool = False) -> Path:
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
    overwrite : bool
        Replace OUT.
    """
    refuse_existing(out, overwrite)

    from cmrcnet.encoding.token_cache import TokenCache
    from cmrcnet.model.trained_model import TrainedModel
    from cmrcnet.prediction.bank import build_bank
    from cmrcnet.readers.cohort import read_cohort

    trained = TrainedModel.load(model)
    sections = _leave_out(read_cohort(cohort, controls=trained.recipe.panel.controls), without)
    bank = build_bank(trained, sections, cache=TokenCache.default())
    bank.save(out, overwrite=overwrite)
    print(f"Bank written to {lasting(out)} ({len(bank):,} spots, {len(bank.genes):,} genes).")
    return out


def predict(
    model: Path,
    slide: Path,
    *,
    bank: Path,
    out: Path,
    section: str | None = None,
    spots: Path | None = None,
    genes: list[str] | None = None,
    k: int | None = None,
    grid_um: float = 100.0,
    um_per_px: float | None = None,
    overwrite: bool = False,
) -> Path:
    """Predict expression on a slide that has none.

    Parameters
    ----------
    model : Path
        Model folder.
    slide : Path
        A slide or picture (SVS, NDPI, MRXS, TIFF, OME-TIFF, JPEG, PNG); or a cohort.csv together with --section.
    bank : Path
        Bank folder that `cmrcnet index` made with this model.
    out : Path
        Prediction table to write (.h5ad); opens in scanpy and squidpy.
    section : str, optional
        Section of the cohort.csv; its picture and the places of its spots are used, its counts never.
    spots : Path, optional
        Table of places to predict (columns pixel_x, pixel_y in level-0 pixels) in place of a grid over the tissue.
    genes : list of str, optional
        Genes to predict, or one file with a gene a line; all that the bank measured when left out.
    k : int, optional
        Measured spots averaged for one place; the model's own choice when left out.
    grid_um : float
        Distance between the places of the grid.
    um_per_px : float, optional
        Micrometres per level-0 pixel, where the slide does not say.
    overwrite : bool
        Replace OUT.
    """
    if out.suffix != ".h5ad":
        raise BadOption("out", str(out), "a file name that ends in .h5ad")
    refuse_existing(out, overwrite)

    from cmrcnet.encoding.token_cache import TokenCache
    from cmrcnet.model.trained_model import TrainedModel
    from cmrcnet.prediction.bank import ReferenceBank
    from cmrcnet.prediction.predict import predict as predict_slide

    picture, places = _where_to_predict(slide, section, spots, um_per_px)
    trained, reference = TrainedModel.load(model), ReferenceBank.load(bank)
    table = predict_slide(
        trained,
        reference,
        picture,
        spots=places,
        genes=_gene_list(genes),
        k=k,
        grid_um=grid_um,
        cache=TokenCache.default(),
    )
    with atomic_file(out) as draft:
        table.write_h5ad(draft)
    print(f"Prediction written to {lasting(out)} ({table.n_obs:,} places, {table.n_vars:,} genes).")
    return out


def evaluate(
    cohort: Path,
    *,
    out: Path,
    recipe: str = "default",
    set_: list[str] | None = None,
    unit: Literal["patient", "section"] | None = None,
    methods: list[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Path:
    """Measure honestly: leave one patient (or section) out, train on the others, predict it, score it.

    Parameters
    ----------
    cohort : Path
        A cohort.csv.
    out : Path
        Run folder to write: report.html, scores.csv, genes.csv, predictions/, run.json.
    recipe : str
        Name of a shipped recipe (`cmrcnet recipes`) or the path of your own .yaml.
    set_ : list of str, optional
        Single settings over the recipe: --set train.epochs=20 readout.k=100
    unit : {"patient", "section"}, optional
        What each fold leaves out. Leaving out a section while its patient trains is stamped on the report.
    methods : list of str, optional
        Methods to compare; all that ship when left out.
    resume : bool
        Go on with the interrupted run in OUT.partial: finished folds and methods are not run again.
    overwrite : bool
        Replace OUT.
    """
    run = _evaluate(cohort, out, recipe, set_, unit, methods, resume, overwrite)
    print(run.to_text())
    print(f"Report: {out / 'report.html'}")
    return out


def demo(*, out: Path = Path("demo"), data: Path | None = None, recipe: str = "tiny", overwrite: bool = False) -> Path:
    """Run the whole journey once and write a report to open.

    Trains and scores leaving one patient out at a time, then trains on all but one slide and predicts that slide from
    its picture alone. Without --data this happens on synthetic tissue whose right answer is known.

    Parameters
    ----------
    out : Path
        Folder to write: report.html, evaluation/, model/, bank/, unseen.h5ad.
    data : Path, optional
        A cohort.csv of real sections in place of the synthetic ones; its last section is the unseen slide.
    recipe : str
        Recipe to run; `default` takes a few times longer and predicts better.
    overwrite : bool
        Replace OUT.
    """
    import json

    from cmrcnet.datasets.synthetic import synthetic_cohort, synthetic_slide, write_cohort, write_slide
    from cmrcnet.evaluation.report import write_report
    from cmrcnet.readers.cohort import read_cohort

    with atomic_folder(out, overwrite) as folder:
        (folder / "demo.json").write_text(json.dumps({"format": 1, "recipe": recipe, "data": str(data or "synthetic")}))
        if data is None:
            table, hidden = write_cohort(synthetic_cohort(), folder / "cohort"), []
            unseen, scale = write_slide(synthetic_slide(), folder / "unseen.png")
        else:
            cohort = read_cohort(data)
            table, hidden = data, [cohort.sections[-1]]
            picture = cohort.read(hidden[0]).slide
            unseen, scale = picture.path, picture.um_per_px
        run = _evaluate(table, folder / "evaluation", recipe)
        train(table, out=folder / "model", recipe=recipe, without=hidden)
        index(folder / "model", table, out=folder / "bank", without=hidden)
        predict(folder / "model", unseen, bank=folder / "bank", out=folder / "unseen.h5ad", um_per_px=scale)
        write_report(run, folder / "report.html", unseen=folder / "unseen.h5ad")
    print(f"Open {out / 'report.html'}")
    return out


def recipes(name: str | None = None) -> None:
    """List the recipes that ship, or show one with every setting.

    Parameters
    ----------
    name : str, optional
        Recipe to show in full; its output is a .yaml that you can edit and pass to --recipe.
    """
    if name is not None:
        import yaml

        print(yaml.safe_dump(Recipe.load(name).to_dict(), sort_keys=False, allow_unicode=True), end="")
        return
    for each in shipped_recipes():
        print(f"{each:20}{Recipe.load(each).about}")


def encoders() -> None:
    """List the image encoders, their scale, licence, and where their weights come from."""
    from cmrcnet.model.encoder_cards import WITHHELD
    from cmrcnet.model.encoder_registry import encoder_card, image_encoders

    for card in map(encoder_card, image_encoders()):
        print(f"{card.name:20}{card.n_tokens} tokens x {card.dim}, {card.um_per_px:g} um per px, {card.licence}")
        print(f"{'':20}{card.source}; {card.note}")
    for name, reason in WITHHELD.items():
        print(f"{name:20}not offered: {reason}")
    print(f"{'timm:NAME':20}any timm model, by its name there")
    print(f"{'hf-hub:ORG/NAME':20}any timm model on the Hugging Face hub, where it can be reached")


def _evaluate(
    cohort: Path,
    out: Path,
    recipe: str,
    set_: list[str] | None = None,
    unit: Literal["patient", "section"] | None = None,
    methods: list[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> EvaluationRun:
    """Run the protocol into a run folder and write its report."""
    plan = _recipe(recipe, set_)

    from cmrcnet.encoding.token_cache import TokenCache
    from cmrcnet.evaluation.protocol import evaluate as run_protocol
    from cmrcnet.evaluation.report import write_report
    from cmrcnet.evaluation.run_folder import RunFolder
    from cmrcnet.readers.cohort import read_cohort

    sections = read_cohort(cohort, controls=plan.panel.controls)
    folder = RunFolder(out, overwrite=overwrite, resume=resume)
    run = run_protocol(sections, plan, methods=methods, unit=unit, cache=TokenCache.default(), folder=folder)
    write_report(run, folder.working / "report.html")
    folder.finish()
    return run


def _recipe(name: str, settings: list[str] | None) -> Recipe:
    given = {}
    for setting in settings or []:
        key, equals, value = setting.partition("=")
        if not equals:
            raise BadOption("set", setting, "KEY=VALUE, as in --set train.epochs=20")
        given[key.strip()] = value.strip()
    return Recipe.load(name).override(given)


def _leave_out(cohort: Cohort, names: list[str] | None) -> Cohort:
    """The cohort without these sections or patients."""
    dropped = []
    for name in names or []:
        of_patient = [section for section in cohort.sections if cohort.patient_of(section) == name]
        if not of_patient and name not in cohort.sections:
            raise BadOption("without", name, f"a section or patient of {cohort.name}")
        dropped += of_patient or [name]
    return cohort.without(dropped)


def _where_to_predict(slide: Path, section: str | None, spots: Path | None, um_per_px: float | None):
    """The slide and, where they were given, the places on it. A section's counts go no further than here."""
    from cmrcnet.readers.cohort import read_cohort
    from cmrcnet.tissue.slide_files import open_slide

    if section is not None:
        for name, value in (("spots", spots), ("um_per_px", um_per_px)):
            if value is not None:
                raise BadOption(name, str(value), "nothing together with --section: the cohort file says it")
        found = read_cohort(slide).read(section)
        return found.slide, found.spots
    if not slide.exists():
        raise NoSuchFile(slide, "The slide")
    if slide.suffix == ".csv":
        raise BadOption("slide", str(slide), "a slide, or a cohort.csv together with --section NAME")
    picture = open_slide(slide, um_per_px=um_per_px)
    if spots is None:
        return picture, None
    from cmrcnet.readers.spot_table import read_spots

    return picture, read_spots(spots)


def _gene_list(genes: list[str] | None) -> list[str] | None:
    if genes is None or len(genes) != 1 or not Path(genes[0]).is_file():
        return genes
    return Path(genes[0]).read_text().split()
