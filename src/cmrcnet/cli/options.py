"""Option groups that several commands share, and how option values are read.

A command takes a group as one parameter; on the command line its fields are ordinary options (`--config`, `--set`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from cmrcnet.config import Config
from cmrcnet.errors import BadOption
from cmrcnet.workers import WorkerOptions, Workers

if TYPE_CHECKING:
    from cmrcnet.search.build import SearchConfig
    from cmrcnet.slides.section import Cohort


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ConfigOptions:
    """The config of a run."""

    config: str = "default"
    """Name of a preset (`cmrcnet presets` lists them) or path of your own .yaml file."""

    set_: list[str] | None = None
    """Options that override the config: --set train.epochs=20 head.k=100"""

    def load(self) -> Config:
        """Read the config and apply the overrides."""
        given = {}
        for setting in self.set_ or []:
            key, equals, value = setting.partition("=")
            if not equals:
                raise BadOption("set", setting, "KEY=VALUE, as in --set train.epochs=20")
            given[key.strip()] = value.strip()
        return Config.load(self.config).override(given)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SectionOptions:
    """What is stated about one section; in a cohort.csv its columns of the same names state it."""

    format: str | None = None
    """Reader of the section when its format cannot be recognised: legacy_st, visium, visium_hd, xenium, cosmx,
    merscope, stomics, slide_seq, spatialdata, hest, ann_data, feature_table, slide_table."""

    image: Path | None = None
    """Full-resolution H&E image, where the format does not hold it."""

    spots: Path | None = None
    """Spot file, where the format has a separate one."""

    spot_diameter_um: float | None = None
    """Diameter of a spot in micrometres; it overrides the files."""

    affine: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None
    """Map from the assay's coordinates to level-0 pixels of the image: six numbers in quotes, or a file."""

    bin_um: float | None = None
    """Side in micrometres of the square bins in which counts are summed."""

    library: str | None = None
    """Which section it is, where the file holds several."""

    table_kind: Literal["counts", "continuous", "proportions", "binary"] | None = None
    """What the table holds; counts unless the file says otherwise."""

    assay: Literal["genes", "proteins"] | None = None
    """Which rows of a Visium or Xenium matrix that holds both; genes when left out."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How the nearest spots of a bank are found."""

    search: Literal["exact", "ivf", "ivf-compressed", "auto"] = "auto"
    """Search type. exact compares with every spot; ivf (an inverted file) and ivf-compressed compare with a part of
    them and need: pip install 'cmrcnet[ann]'. auto takes exact for a small bank and ivf for a large one."""

    recall: float = 0.95
    """Share of the true nearest spots that an approximate search must find, measured on held-out spots."""

    nprobe: int | None = None
    """IVF lists that each query compares with; the smallest number that reaches --recall when left out."""

    def to_config(self) -> SearchConfig:
        """Check the values and return them as the search room takes them."""
        from cmrcnet.search.build import SearchConfig

        return SearchConfig(kind=self.search, recall=self.recall, nprobe=self.nprobe)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class WorkersOptions:
    """Where work is done in parallel."""

    engine_workers: str = "local"
    """local: processes of this machine. ray: workers of the Ray cluster that this machine belongs to, or of this
    machine alone with all of its GPUs. ray://HOST:PORT: of a cluster elsewhere. Ray needs: pip install
    'cmrcnet[cluster]'; all nodes must see the files under the same paths."""

    workers: int | Literal["auto"] = "auto"
    """Number of workers; auto uses one per core (`predict` and `index`: one), and on Ray one per GPU of the cluster, or
    per core where it has none. Results do not depend on it."""

    def to_options(self, by_default: Workers = "auto") -> WorkerOptions:
        """Check the values and return them as the library takes them; `by_default` workers are local and auto."""
        chosen = WorkerOptions(self.engine_workers, self.workers)
        return WorkerOptions("local", by_default) if chosen == WorkerOptions("local", "auto") else chosen


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Methods, folds, seeds and processes of an evaluation."""

    methods: list[str] | None = None
    """Methods to compare, separated by spaces or commas. `evaluate` runs all that ship when left out; `sweep` and
    `transfer` run cmrcnet and, besides it, those that are named."""

    group_by: Literal["patient", "section"] | None = None
    """What each fold leaves out: a patient or a section. The report is marked when a section is left out whose
    patient also has sections in training."""

    seeds: int = 1
    """Number of seeds, counted up from that of the config; scores are means over the seeds."""

    workers: WorkersOptions = field(default_factory=WorkersOptions)
    """Where folds and seeds are run."""

    resume: bool = False
    """Continue the interrupted run in OUT.partial; what is finished there is not computed again."""

    overwrite: bool = False
    """Replace OUT."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ProtocolOptions:
    """How genes are chosen and which folds are run."""

    protocol: Literal["strict", "paper"] = "strict"
    """strict: the scored genes are chosen on training sections. paper: as in published studies, one section is left
    out, the panel is chosen on all sections, and HEG and HVG are those of the test section; the report is marked."""

    folds: list[str] | None = None
    """Run only the folds that leave out these patients (or sections); the report is marked."""


DEFAULT_CONFIG, DEFAULT_SECTION, DEFAULT_SEARCH = ConfigOptions(), SectionOptions(), SearchOptions()
DEFAULT_RUN, DEFAULT_PROTOCOL, DEFAULT_WORKERS = RunOptions(), ProtocolOptions(), WorkersOptions()


def split_names(names: list[str] | None) -> list[str] | None:
    """Split names that are separated by commas."""
    if names is None:
        return None
    return [name.strip() for each in names for name in each.split(",") if name.strip()]


def read_genes(genes: list[str] | None) -> list[str] | None:
    """Return genes given by name, or read them from a file when one path is given."""
    if genes is None or len(genes) != 1:
        return split_names(genes)
    try:
        if not Path(genes[0]).is_file():
            return split_names(genes)
    except OSError:  # a list that is too long for the name of a file
        return split_names(genes)
    from cmrcnet.readers.text_files import read_text

    return split_names(read_text(Path(genes[0]), "The list of genes").split())


def sections_named(cohort: Cohort, names: list[str] | None, option: str) -> list[str]:
    """Return the sections that `names` stand for: each name is a section or a patient (all sections of the patient)."""
    found = []
    for name in names or []:
        of_patient = [section for section in cohort.sections if cohort.patient_of(section) == name]
        if not of_patient and name not in cohort.sections:
            raise BadOption(option, name, f"a section or patient of {cohort.name}")
        found += of_patient or [name]
    return found


def count_text(*counts: tuple[int, str]) -> str:
    """Write counts as text: ``1 gene, 2,000 spots``."""
    return ", ".join(f"{count:,} {what}" if count == 1 else f"{count:,} {what}s" for count, what in counts)
