"""Commands that make and use prediction tables: predict, export, explain, localise."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cmrcnet.cli.options import DEFAULT_WORKERS, WorkersOptions, count_text, read_genes
from cmrcnet.errors import BadOption, MissingInput, UnknownName
from cmrcnet.storage.atomic import atomic_file, final_path, refuse_existing
from cmrcnet.storage.names import guard_table, name_of_file

if TYPE_CHECKING:
    from anndata import AnnData

    from cmrcnet.inference.predictor import PredictOptions, Predictor
    from cmrcnet.search.exact import Searcher
    from cmrcnet.slides.section import Spots
    from cmrcnet.slides.slide import Slide


def predict_command(
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
    window_um: float | None = None,
    batch: int | Literal["auto"] = "auto",
    intervals: bool = False,
    abstain: float | None = None,
    content: Literal["all", "expression", "components"] = "all",
    half: bool = False,
    mpp: float | None = None,
    features: Path | None = None,
    workers: WorkersOptions = DEFAULT_WORKERS,
    bank_shards: int | None = None,
    overwrite: bool = False,
) -> Path | bool:
    """Predict expression on a slide without counts, or on many slides.

    A slide is read and written in chunks. After an interrupt or a crash, the same command continues.

    Parameters
    ----------
    model : Path
        Model, a folder or .zip (`cmrcnet pack`); or student (`cmrcnet distil`), which needs no bank and gives no
        attributions, intervals or abstention.
    slide : Path
        A slide or picture (SVS, NDPI, MRXS, TIFF, OME-TIFF, JPEG, PNG); or a cohort.csv together with --section; or
        a folder of slides, or a pattern in quotes ("slides/*.svs").
    out : Path
        Prediction table to write: .h5ad opens in scanpy and squidpy, .zarr in SpatialData and LazySlide (needs
        cmrcnet[spatialdata]). For many slides: a folder, which gets one table per slide and summary.csv; slides that
        are done are skipped, and broken ones are reported at the end (exit code 1).
    bank : Path, optional
        Bank folder that `cmrcnet index` made with this model; needed unless MODEL is a student.
    section : str, optional
        Section of the cohort.csv; its image and spot positions are used, its counts are not read.
    spots : Path, optional
        Table of locations to predict (columns pixel_x, pixel_y in level-0 pixels), polygons of regions (.geojson), or
        patches that TRIDENT or CLAM laid out (.h5), in place of a grid over the tissue.
    mask : Path, optional
        Picture of the whole slide, at any size, in which tissue is white; in place of tissue detection.
    genes : list of str, optional
        Genes to predict, or one file with a gene per line; all genes of the bank when left out.
    k : int, optional
        Number of nearest spots to average; as chosen in training when left out.
    grid_um : float
        Pitch of the grid of locations, in micrometres. A pitch below the size of a spot gives a smoother map, not a
        sharper one, unless --window-um is given too.
    window_um : float, optional
        Side in micrometres of the square that each value is for, smaller than a spot: --grid-um 8 --window-um 28. Needs
        a model trained with features.window_um, whose ridge head then predicts, without intervals. Validated on
        synthetic tissue only; on real tissue the mean over a spot is a spot's prediction, and no more is known.
    batch : int or "auto"
        Number of patches that are encoded at once; auto suits the device.
    intervals : bool
        Also write the calibrated 90 % interval of every value (layers lower and upper); three times the size.
    abstain : float, optional
        Mark locations that are less certain than this share of the validation spots: --abstain 0.3
    content : str
        What the table holds. all: expression, its spread among the nearest spots, and these; expression alone;
        components: 80 bytes a location for any number of genes, of which `export` and other commands decode those that
        they show. For maps of fine pitch.
    half : bool
        Keep expression at half precision (float16, three digits): half the size. Not with components.
    mpp : float, optional
        Micrometres per level-0 pixel, for slides that do not state it.
    features : Path, optional
        Features that you computed elsewhere (.h5 of TRIDENT, CLAM or HEST), for a model of an external encoder: the
        slide's patches are predicted. For many slides: the folder, with a file of each slide's name.
    workers : WorkersOptions
        Where many slides are predicted in parallel.
    bank_shards : int, optional
        Number of Ray actors that share the sections of a bank that is too large for the memory of one machine; needs
        --engine-workers ray.
    overwrite : bool
        Replace OUT.
    """
    from cmrcnet.inference.slide_batch import SlidePredictor, predict_slides, slides_of

    slides = None if slide.is_file() else slides_of(slide)
    if slides is None:
        if out.suffix not in (".h5ad", ".zarr"):
            raise BadOption("out", str(out), "a file name that ends in .h5ad or .zarr")
        refuse_existing(out, overwrite, folder=out.suffix == ".zarr")

    from cmrcnet.inference.predict import predict_to_file
    from cmrcnet.inference.predictor import PredictOptions
    from cmrcnet.readers.annotations import read_mask
    from cmrcnet.storage.cache import TokenCache

    options = {"genes": read_genes(genes), "k": k, "grid_um": grid_um, "window_um": window_um}
    options |= {"intervals": intervals, "abstain": abstain, "content": content, "half": half}
    search = None
    if bank_shards is not None:
        from cmrcnet.retrieval.bank import ReferenceBank
        from cmrcnet.retrieval.sharded_search import ShardedSearch

        if bank is None:
            raise BadOption("bank-shards", bank_shards, "nothing without --bank")
        search = ShardedSearch(ReferenceBank.load(bank), bank_shards, workers.engine_workers)
    if slides is not None:
        for name, value in (("section", section), ("spots", spots), ("mask", mask)):
            if value is not None:
                raise BadOption(name, str(value), "nothing together with many slides")
        load = partial(_predictor, model, bank, PredictOptions(**options), search)
        predictor = SlidePredictor(load, out, batch, mpp, TokenCache.default(), overwrite, features)
        done = predict_slides(predictor, slides, workers.to_options(by_default=1))  # which computes with all cores
        print(done.to_text())
        return out if not done.broken else False
    picture, locations = _slide_and_locations(slide, section, spots, mpp, features)
    tissue = None if mask is None else read_mask(mask, picture)
    predictor = _predictor(model, bank, PredictOptions(spots=locations, mask=tissue, **options), search)
    count, width = predict_to_file(predictor, picture, out, cache=TokenCache.default(), batch=batch)
    print(
        f"Prediction written to {final_path(out)} ({count_text((count, 'location'), (width, predictor.scaling.word))})."
    )
    return out


def _predictor(model: Path, bank: Path | None, options: PredictOptions, search: Searcher | None) -> Predictor:
    """Load a model with its bank, which `search` searches where it is given, or a student."""
    from cmrcnet.inference.predictor import make_predictor
    from cmrcnet.models.artefact import read_part
    from cmrcnet.models.student import FILE, Student

    if read_part(model, FILE) is not None:
        if bank is not None:
            raise BadOption("--bank", str(bank), f"nothing with a student ({model}), which has no bank")
        return make_predictor(Student.from_pretrained(model), None, options)
    if bank is None:
        raise BadOption("--bank", "left out", "the bank folder made with this model; only a student needs none")

    from cmrcnet.models.trained_model import TrainedModel
    from cmrcnet.retrieval.bank import ReferenceBank

    opened = ReferenceBank.load(bank)
    if search is not None:
        opened.search_by(search)
    return make_predictor(TrainedModel.from_pretrained(model), opened, options)


def _slide_and_locations(
    slide: Path, section: str | None, spots: Path | None, mpp: float | None, features: Path | None
) -> tuple[Slide, Spots | None]:
    """Open the slide and read the locations to predict, if any are given; counts of a section are not passed on."""
    from cmrcnet.readers.annotations import read_spots
    from cmrcnet.readers.cohort import read_cohort
    from cmrcnet.readers.patch_files import ENDINGS, FeatureSlide, PatchFile
    from cmrcnet.readers.polygons import GEOJSON, read_region_spots
    from cmrcnet.slides.slide import open_slide

    if section is not None:
        for name, value in (("spots", spots), ("mpp", mpp), ("features", features)):
            if value is not None:
                raise BadOption(name, str(value), "nothing together with --section: the cohort file gives it")
        found = read_cohort(slide).read(section)
        return found.slide, found.spots
    if slide.suffix == ".csv" and slide.exists():
        raise BadOption("slide", str(slide), "a slide, or a cohort.csv together with --section NAME")
    picture = open_slide(slide, mpp=mpp)
    if features is not None:
        picture = FeatureSlide(picture, features)
    if spots is None:
        return picture, None
    if spots.suffix == GEOJSON:
        return picture, read_region_spots(spots, picture)
    return picture, PatchFile.read(spots).spots(picture) if spots.suffix in ENDINGS else read_spots(spots)


def export_command(
    prediction: Path,
    *,
    to: Path,
    genes: list[str] | None = None,
    slide: Path | None = None,
    depth: float | None = None,
    nuclei: Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Convert a prediction table to a format that other programs open.

    Parameters
    ----------
    prediction : Path
        A prediction table (.h5ad) that `cmrcnet predict` wrote.
    to : Path
        File to write: .geojson for QuPath, .png for heat maps, .ome.tiff with one channel per gene, .h5ad for a table
        of the genes alone, .zarr for SpatialData and LazySlide (needs cmrcnet[spatialdata]).
    genes : list of str, optional
        Genes to write, or one file with a gene per line; the six most variable when left out. A .zarr holds all genes.
    slide : Path, optional
        The slide, for the image in a .zarr; the thumbnail in the table when left out.
    depth : float, optional
        Write counts in place of logarithms, as of a spot with so many counts in all genes: --to counts.h5ad --depth
        5000. Depth is not predicted.
    nuclei : Path, optional
        Nuclei (.geojson of points or outlines, .parquet or a table with pixel_x and pixel_y): each gets the value of
        the window that holds it; TO ends in .geojson, .parquet or .csv.
    overwrite : bool
        Replace TO.
    """
    from cmrcnet.export.counts_table import write_counts
    from cmrcnet.export.formats import STORE, ending_of, export
    from cmrcnet.export.nuclei import ENDINGS, read_nuclei, write_nuclei
    from cmrcnet.export.stored_prediction import StoredPrediction
    from cmrcnet.slides.slide import open_slide

    if depth is not None or nuclei is not None:
        others = ("genes", genes if depth is not None else None), ("slide", slide), ("nuclei", depth and nuclei)
        for name, value in others:
            if value is not None:
                raise BadOption(name, str(value), f"nothing together with --{'nuclei' if depth is None else 'depth'}")
        ending = ending_of(to, ENDINGS if depth is None else (".h5ad",))
        refuse_existing(to, overwrite)
        found = None if nuclei is None else read_nuclei(nuclei)
        with StoredPrediction(prediction) as table, atomic_file(to) as tmp:
            if found is not None:
                count, inside = write_nuclei(table, found, tmp, ending, read_genes(genes))
                print(
                    f"{inside:,} of {count:,} nuclei lie in a predicted window; those in one window share its values."
                )
            elif depth is not None:
                write_counts(table, tmp, depth)
        print(f"Written to {final_path(to)}.")
        return to
    refuse_existing(to, overwrite, folder=ending_of(to) == STORE)
    with StoredPrediction(prediction) as table:
        picture = None if slide is None else open_slide(slide, mpp=float(table.facts["mpp"]))
        export(table, to, genes=read_genes(genes), slide=picture, overwrite=overwrite)
    print(f"Written to {final_path(to)}.")
    return to


def explain_command(
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
    """Explain one predicted location on one page: its patch, the nearest measured spots, and their measured values.

    Parameters
    ----------
    prediction : Path
        A prediction table (.h5ad).
    spot : str
        Name of the location, as in obs_names of the table.
    out : Path
        Page to write: .png, .pdf or .svg; or .csv for the list of all nearest spots with their weights.
    cohort : Path, optional
        The cohort.csv that the bank was built from, for patches and measured values of the nearest spots.
    slide : Path, optional
        The slide that was predicted, when it is not in the cohort.
    genes : list of str, optional
        Genes to show, at most eight, or one file with a gene per line; the most reliable when left out.
    mpp : float, optional
        Micrometres per level-0 pixel of the slide; that of the prediction when left out, from which it must not differ
        by more than 1 %.
    overwrite : bool
        Replace OUT.
    """
    kind = out.suffix.removeprefix(".")
    if kind not in ("png", "pdf", "svg", "csv"):
        raise BadOption("out", str(out), "a file name that ends in .png, .pdf, .svg or .csv")
    refuse_existing(out, overwrite)

    from cmrcnet.analysis.attribution import attribution
    from cmrcnet.analysis.attribution_sheet import attribution_sheet
    from cmrcnet.export.table_file import TableSeal
    from cmrcnet.readers.ann_data import read_location
    from cmrcnet.readers.cohort import read_cohort
    from cmrcnet.slides.slide import open_slide, refuse_other_scale

    TableSeal(prediction)  # a table that was damaged is refused here
    table = read_location(prediction, spot)
    found, info = attribution(table, spot), table.uns["cmrcnet"]
    predicted_at = float(info["mpp"])
    if mpp is not None:
        refuse_other_scale(info["slide"], mpp, predicted_at, mend="--mpp")
    with atomic_file(out) as tmp:
        if kind == "csv":
            guard_table(found.spots).to_csv(tmp, index=False)
        else:
            sheet = attribution_sheet(
                table,
                spot,
                genes=read_genes(genes),
                cohort=None if cohort is None else read_cohort(cohort),
                slide=None if slide is None else open_slide(slide, mpp=mpp or predicted_at),
                kind=kind,
            )
            tmp.write_bytes(sheet)
    print(f"{final_path(out)}: {found.sentence}")
    return out


def localise_command(
    prediction: Path,
    cohort: Path,
    *,
    section: str | None = None,
    organ: str | None = None,
    merge: bool = False,
    out: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Score how well predicted marker genes locate labelled regions, next to measured expression as the ceiling.

    Parameters
    ----------
    prediction : Path
        A prediction table (.h5ad) made at the spots of one section, or the run folder of an evaluation.
    cohort : Path
        A cohort.csv whose column `regions` names each section's table of labels (columns spot, region).
    section : str, optional
        Section that the table predicts; the name of its file when left out.
    organ : str, optional
        Marker list to use: breast, colorectal, liver, skin, spinal cord; found from the column `disease` when left
        out.
    merge : bool
        Merge regions whose labels differ only in a number or a part: "cancer 1" and "cancer 2".
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
    shown = list(dict.fromkeys(table["signature"][table["expected"]]))
    print("\n".join([f"Markers: {chosen.organ}, version {chosen.version}.", *source_lines(chosen, shown)]))
    if out is not None:
        with atomic_file(out) as tmp:
            guard_table(table).to_csv(tmp, index=False)
        print(f"Table written to {out} ({len(table)} rows).")


def _predicted_sections(prediction: Path, section: str | None) -> dict[str, AnnData]:
    """Prediction tables by section: of one file, or of every section of a run folder."""
    from cmrcnet.evaluation.protocol.run_folder import read_run
    from cmrcnet.export.stored_prediction import StoredPrediction

    folder = prediction / "predictions"
    if prediction.is_dir():
        files = {name_of_file(f.stem): f for f in sorted(folder.glob("*.h5ad")) if not f.name.startswith(".")}
        if not files:
            raise MissingInput(folder, "The prediction tables of the run in", "give a finished run folder or an .h5ad")
        if section is not None:
            if section not in files:
                raise UnknownName("section", section, tuple(files))
            files = {section: files[section]}
        if (prediction / "run.json").exists():
            read_run(prediction, [f"predictions/{file.name}" for file in files.values()])
    elif prediction.is_file():
        of_run = prediction.parent.name == "predictions"
        files = {section or (name_of_file(prediction.stem) if of_run else prediction.stem): prediction}
    else:
        raise MissingInput(prediction, "The prediction table")
    found = {}
    for name, file in files.items():
        with StoredPrediction(file) as table:
            found[name] = table.to_ann_data()
    return found
