"""Commands that compare methods: evaluate, sweep, transfer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cmrcnet.cli.options import (
    DEFAULT_CONFIG,
    DEFAULT_PROTOCOL,
    DEFAULT_RUN,
    ConfigOptions,
    ProtocolOptions,
    RunOptions,
    split_names,
)
from cmrcnet.errors import BadOption
from cmrcnet.storage.atomic import atomic_file
from cmrcnet.storage.names import guard_table

if TYPE_CHECKING:
    from cmrcnet.evaluation.protocol.evaluate import EvaluationRun


def evaluate_command(
    cohort: Path,
    *,
    out: Path,
    config: ConfigOptions = DEFAULT_CONFIG,
    protocol: ProtocolOptions = DEFAULT_PROTOCOL,
    run: RunOptions = DEFAULT_RUN,
) -> Path:
    """Cross-validate methods: leave out one patient (or section), train on the others, predict it, score it.

    Parameters
    ----------
    cohort : Path
        A cohort.csv.
    out : Path
        Run folder to write: report.html, scores.csv, genes.csv, uncertainty.csv, predictions/, run.json.
    config : ConfigOptions
        The config of the run.
    protocol : ProtocolOptions
        How genes are chosen and which folds are run.
    run : RunOptions
        Methods, folds, seeds and processes.
    """
    done = evaluate_into(out, cohort, config=config, protocol=protocol, options=run)
    print(done.to_text())
    print(done.time_to_text())
    print(f"Report: {out / 'report.html'}")
    return out


def sweep_command(
    cohort: Path,
    *,
    out: Path,
    config: ConfigOptions = DEFAULT_CONFIG,
    over: list[str] | None = None,
    preset: str | None = None,
    ablate: bool = False,
    one_at_a_time: bool = False,
    only: list[str] | None = None,
    protocol: ProtocolOptions = DEFAULT_PROTOCOL,
    run: RunOptions = DEFAULT_RUN,
) -> Path:
    """Evaluate several variants of a config: sweeps, ablations, and the deviations of the released code.

    Parameters
    ----------
    cohort : Path
        A cohort.csv.
    out : Path
        Sweep folder to write: sweep.html, sweep.csv, sweep.json, plots, and the scores of each trial.
    config : ConfigOptions
        The base config.
    over : list of str, optional
        Options to vary, with their values: --over model.mask_rate=0,0.3,0.5 --over head.k=10,50
    preset : str, optional
        A shipped sweep in place of --over: ablation, mask, k, reconstruct, departures.
    ablate : bool
        The same as --preset ablation: contrastive training alone against the full config.
    one_at_a_time : bool
        Change one option at a time; otherwise every value of an option is combined with every value of the others.
    only : list of str, optional
        Run only the base and these trials, by their names in sweep.csv.
    protocol : ProtocolOptions
        How genes are chosen and which folds are run.
    run : RunOptions
        Methods, folds, seeds and processes.
    """
    from cmrcnet.evaluation.sweep.sweep_plan import plan_over, preset_plan, read_axes

    base = config.load()
    if sum([bool(over), preset is not None, ablate]) != 1:
        raise BadOption("over", over or "", "one of --over KEY=a,b,c, --preset NAME and --ablate")
    if over:
        plan = plan_over(base, read_axes(over), one_at_a_time=one_at_a_time)
    else:
        plan = preset_plan(base, preset or "ablation")
    plan = plan.only(only)

    from cmrcnet.evaluation.sweep.run_sweep import SweepFolder, sweep
    from cmrcnet.evaluation.sweep.sweep_report import write_sweep
    from cmrcnet.readers.cohort import read_cohort
    from cmrcnet.storage.cache import TokenCache

    read_cohort(cohort)  # refused before the folder is made
    folder = SweepFolder(out, overwrite=run.overwrite, resume=run.resume)
    done = sweep(
        lambda controls: read_cohort(cohort, controls=controls),
        plan,
        folder,
        TokenCache.default(),
        methods=split_names(run.methods) or (),
        protocol=protocol.protocol,
        group_by=run.group_by,
        seeds=run.seeds,
        only=protocol.folds,
        workers=run.workers.to_options(),
    )
    write_sweep(done, folder)
    print(done.to_text())
    print(f"Report: {out / 'sweep.html'}")
    return out


def transfer_command(
    train: Path,
    tests: list[Path],
    *,
    out: Path,
    config: ConfigOptions = DEFAULT_CONFIG,
    run: RunOptions = DEFAULT_RUN,
) -> Path:
    """Train on one cohort, test on others, and compare with the scores inside each cohort.

    Parameters
    ----------
    train : Path
        The cohort.csv to train on.
    tests : list of Path
        Cohorts to test on: TRAIN.csv TEST.csv TEST2.csv
    out : Path
        Folder to write: transfer.html, transfer.csv, transfer.json, and the scores of each part.
    config : ConfigOptions
        The config of the run.
    run : RunOptions
        Methods, folds inside each cohort (sections where a cohort has one patient), seeds and processes.
    """
    wanted = config.load()

    from cmrcnet.evaluation.sweep.sweep_report import write_transfer
    from cmrcnet.evaluation.sweep.transfer import TransferFolder, transfer
    from cmrcnet.readers.cohort import read_cohort
    from cmrcnet.storage.cache import TokenCache

    source, *targets = [read_cohort(csv, controls=wanted.panel.controls) for csv in (train, *tests)]
    folder = TransferFolder(out, overwrite=run.overwrite, resume=run.resume)
    done = transfer(
        source,
        targets,
        wanted,
        folder,
        TokenCache.default(),
        methods=split_names(run.methods) or (),
        group_by=run.group_by,
        seeds=run.seeds,
        workers=run.workers.to_options(),
    )
    write_transfer(done, folder)
    print(done.to_text())
    print(f"Report: {out / 'transfer.html'}")
    return out


def evaluate_into(
    out: Path,
    cohort: Path,
    *,
    config: ConfigOptions,
    protocol: ProtocolOptions = DEFAULT_PROTOCOL,
    options: RunOptions = DEFAULT_RUN,
) -> EvaluationRun:
    """Evaluate methods on a cohort and write the run folder `out` with its report."""
    wanted = config.load()

    from cmrcnet.evaluation.protocol.evaluate import evaluate
    from cmrcnet.evaluation.protocol.run_folder import RunFolder
    from cmrcnet.evaluation.report.calibration_section import uncertainty_scores
    from cmrcnet.evaluation.report.evaluation_report import write_report
    from cmrcnet.readers.cohort import read_cohort
    from cmrcnet.storage.cache import TokenCache

    sections = read_cohort(cohort, controls=wanted.panel.controls)
    folder = RunFolder(out, overwrite=options.overwrite, resume=options.resume)
    run = evaluate(
        sections,
        wanted,
        methods=split_names(options.methods),
        protocol=protocol.protocol,
        group_by=options.group_by,
        seeds=options.seeds,
        only=protocol.folds,
        workers=options.workers.to_options(),
        cache=TokenCache.default(),
        folder=folder,
    )
    if len(measured := uncertainty_scores(run)):
        with atomic_file(folder.working / "uncertainty.csv") as tmp:
            guard_table(measured).to_csv(tmp, index=False)
    write_report(run, folder.working / "report.html")
    folder.finish()
    return run
