"""Workers of this machine and of a Ray cluster: the same answers, errors as themselves, nothing lost with a node."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import anndata
import numpy as np
import pytest
from PIL import Image

from cmrcnet.datasets.synthetic import synthetic_cohort, write_cohort
from cmrcnet.errors import BadOption, CmrcnetWarning, Damaged, TooFew, WorkerDied
from cmrcnet.retrieval.bank import ReferenceBank, build_bank
from cmrcnet.retrieval.sharded_search import ShardedSearch
from cmrcnet.search.build import SearchConfig
from cmrcnet.slides.section import Cohort
from cmrcnet.workers import WorkerOptions, _Answer, cores, run_in_workers, why_not_picklable
from tests.inference.small_model import noise_slide, small_cohort, small_model, small_section
from tests.squares import Squares, lengths


@pytest.fixture(params=["local", "ray"])
def engine(request):
    if request.param == "ray":
        request.getfixturevalue("cluster")
    return request.param


@pytest.fixture(scope="module")
def cluster():
    """Three nodes of a core each, on this machine."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    made.add_node(num_cpus=1)
    ray.init(made.address, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(_paths())}})
    yield made
    ray.shutdown()
    made.shutdown()


def _paths() -> list[str]:
    import cmrcnet

    return [str(Path(__file__).parents[1]), str(Path(cmrcnet.__file__).parents[1])]


def test_results_errors_and_warnings_come_back_as_themselves(engine, tmp_path):
    with pytest.warns(CmrcnetWarning, match="four"):
        found = dict(run_in_workers(range(8), Squares(tmp_path), count=2, engine=engine))
    assert isinstance(found.pop(3), TooFew) and found == {n: n**2 for n in range(8) if n != 3}
    assert sorted(int(path.stem) for path in tmp_path.iterdir()) == list(range(8))  # each once
    assert len({path.suffix for path in tmp_path.iterdir()}) <= 2


def test_a_worker_that_cannot_start_says_why(engine, tmp_path):
    ((_, error),) = run_in_workers([1], Squares(tmp_path, fails_to_start=True), count=1, engine=engine)
    assert isinstance(error, TooFew) and "train one" in str(error)


def test_a_local_worker_that_dies_costs_only_its_task(tmp_path):
    """However it ends, and also while another is at work, which is not begun twice."""
    tasks = [1000, 99, 98, 5, 97]
    found = dict(run_in_workers(tasks, Squares(tmp_path), count=2, name_of=lambda task: f"task {task}"))
    died = {task: str(found.pop(task)) for task in (99, 98, 97) if isinstance(found[task], WorkerDied)}
    for task, how in ((99, "exit code 9"), (98, "exit code -9"), (97, "exit code 143")):
        assert f"ran task {task} ended without a result ({how})" in died[task]
    assert found == {n: n**2 for n in (1000, 5)}
    assert sorted(int(path.stem) for path in tmp_path.iterdir()) == sorted(tasks)  # each once


def test_the_death_of_a_worker_is_told_while_another_goes_on(tmp_path):
    start = time.monotonic()
    found = run_in_workers([600_000, 99], Squares(tmp_path), count=2)
    task, error = next(found)
    assert task == 99 and isinstance(error, WorkerDied)
    cast(Generator, found).close()
    assert time.monotonic() - start < 300


def test_local_workers_that_never_start_end_the_run(tmp_path):
    with pytest.raises(WorkerDied, match=r"ran the first task ended without a result \(exit code 9\)"):
        list(run_in_workers([1, 2], Squares(tmp_path, ends_at_start=True), count=1))


def test_a_local_worker_that_ends_while_it_is_idle_costs_nothing(tmp_path):
    known = set(multiprocessing.active_children())
    found = run_in_workers([5, 6], Squares(tmp_path), count=1)
    assert next(found) == (5, 25)
    (worker,) = set(multiprocessing.active_children()) - known
    worker.kill()
    worker.join()
    time.sleep(0.5)  # so that the pool knows
    assert list(found) == [(6, 36)]


def test_hundreds_of_tasks_with_long_names():
    """More than a pipe that is never emptied would hold."""
    found = run_in_workers(range(500), lengths, count=1, name_of=lambda task: f"{task:0200}")
    assert sum(answer for _, answer in found) == 10 + 90 * 2 + 400 * 3


class FakeRay:
    """Ray without a cluster: actors answer at once, and are recorded."""

    def __init__(self, answers: Callable[[object, int], object], **resources: float) -> None:
        self.put: Any = lambda value: value
        self.cluster_resources = lambda: resources
        self.answers, self.events, self.asked = answers, [], {}

    def remote(self, **asked):
        self.asked = asked
        return lambda _: SimpleNamespace(remote=self._start)

    def _start(self, *_):
        actor = SimpleNamespace(ready=SimpleNamespace(remote=lambda: _Reference(None)))
        actor.run = SimpleNamespace(remote=lambda task: self._run(actor, task))
        self.events.append(("start", actor))
        return actor

    def _run(self, actor, task):
        self.events.append((task, actor))
        return _Reference(self.answers(task, sum(event == task for event, _ in self.events)))

    def kill(self, actor):
        self.events.append(("kill", actor))


class _Reference:
    def __init__(self, answer: object) -> None:
        self._answer = answer

    def future(self) -> Future:
        made = Future()
        if isinstance(self._answer, BaseException):
            made.set_exception(self._answer)
        else:
            made.set_result(_Answer(self._answer))
        return made


def _losses() -> list[Exception]:
    from ray import exceptions

    return [
        exceptions.ActorDiedError(),
        exceptions.ActorUnavailableError("no answer", None),
        exceptions.OutOfMemoryError("killed"),
        exceptions.NodeDiedError("gone"),
        exceptions.ObjectLostError("0" * 56, None, ""),
        exceptions.OwnerDiedError("0" * 56, None, ""),
        exceptions.WorkerCrashedError(),
        exceptions.LocalRayletDiedError(),
        exceptions.ObjectFetchTimedOutError("0" * 56, None, ""),
        exceptions.RaySystemError("raylet"),
    ]


@pytest.fixture
def fake_ray(monkeypatch):
    pytest.importorskip("ray")

    def make(answers, **resources):
        made = FakeRay(answers, **resources)
        monkeypatch.setattr("cmrcnet.workers.connect_ray", lambda _: made)
        return made

    return make


@pytest.mark.parametrize("number", range(10))
def test_whatever_ray_says_of_a_lost_worker_costs_only_its_task(fake_ray, number, caplog):
    """Begun again by another worker; the old one, which may be alive, is ended before."""
    pytest.importorskip("ray")
    loss = _losses()[number]
    ray = fake_ray(lambda task, tries: loss if task == "bad" or (task == "unlucky" and tries == 1) else f"{task} done")
    found = dict(run_in_workers(["a", "bad", "unlucky", "b"], Squares(Path()), count=1, engine="ray"))
    error = found.pop("bad")
    assert found == {task: f"{task} done" for task in ("a", "unlucky", "b")}
    assert isinstance(error, WorkerDied) and f"(lost 3 times; {type(loss).__name__}: " in str(error)
    assert f"the worker of unlucky was lost ({type(loss).__name__}" in caplog.text
    killed = []
    for at, (event, actor) in enumerate(ray.events):
        if event == "kill":
            killed.append(actor)
        elif event == "start" and at > 0:
            assert killed == [before for what, before in ray.events[:at] if what == "start"]
    assert len(killed) == sum(event == "start" for event, _ in ray.events) == 5


def test_an_error_of_a_ray_task_is_not_a_lost_worker(fake_ray):
    from ray.exceptions import OutOfMemoryError, RayTaskError

    error = RayTaskError("run", "trace", OutOfMemoryError("of a task that it had asked")).as_instanceof_cause()
    fake_ray(lambda *_: error)
    with pytest.raises(RayTaskError):
        list(run_in_workers(["a"], Squares(Path()), count=1, engine="ray"))


@pytest.mark.parametrize(("gpus", "count", "each"), [(0, 3, 0), (4, 3, 1), (4, 4, 1), (4, 5, 0.5), (1, 3, 0.3333)])
def test_more_workers_than_gpus_share_them(fake_ray, gpus, count, each):
    """A worker that asked for none would see none, and compute on the CPU."""
    ray = fake_ray(lambda *_: "done", **({"GPU": float(gpus)} if gpus else {}))
    assert len(list(run_in_workers(range(count), Squares(Path()), count=count, engine="ray"))) == count
    assert ray.asked["num_gpus"] == each


def test_a_task_that_ends_every_ray_worker_is_given_up_and_the_others_are_done(cluster, tmp_path):
    found = dict(run_in_workers([99, 5, 6], Squares(tmp_path), count=2, engine="ray"))
    assert isinstance(found[99], WorkerDied) and (found[5], found[6]) == (25, 36)
    assert len(list(tmp_path.glob("99.*"))) == 3


def test_a_cluster_whose_workers_never_start_is_refused(cluster, tmp_path):
    with pytest.raises(BadOption, match="a cluster whose nodes can start a worker"):
        list(run_in_workers([1], Squares(tmp_path, ends_at_start=True), count=1, engine="ray"))


def test_a_lost_node_costs_only_its_running_task(cluster, tmp_path):
    lost = False
    found = {}
    for task, result in run_in_workers(range(1000, 1008), Squares(tmp_path), count=3, engine="ray"):
        found[task] = result
        if not lost:
            lost = True
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    assert found == {n: n**2 for n in range(1000, 1008)}
    begun = [int(path.stem) for path in tmp_path.iterdir()]
    assert set(begun) == set(found) and len(begun) <= len(found) + 1


def test_a_bank_of_a_cluster_is_that_of_one_process(cluster, tmp_path):
    """By command, all files byte for byte."""
    from cmrcnet.cli import app

    made = synthetic_cohort(patients=3, spots=20, genes=40, seed=1)
    small_model(panel=made.read("P1S1").genes[:6]).save_pretrained(tmp_path / "model")
    cohort = write_cohort(made, tmp_path / "cohort")
    banks = []
    for engine, workers in (("local", "auto"), ("ray", "2")):
        out = tmp_path / f"bank-{engine}"
        words = ["index", str(tmp_path / "model"), str(cohort), "--out", str(out)]
        assert app.main([*words, "--engine-workers", engine, "--workers", workers]) == 0
        banks.append({path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()})
    assert len(banks[0]) > 3 * 6 and banks[0] == banks[1]


def test_shards_find_what_one_bank_finds(cluster, tmp_path):
    """But for rounding; also by an index of which all lists are scanned."""
    model = small_model()
    sections = Cohort.of([small_section(f"S{n}", f"P{n}", 9 + n, seed=n) for n in range(5)])
    made = build_bank(model, sections)
    queries = np.random.default_rng(0).normal(size=(30, made.vectors.shape[1])).astype(np.float32)
    for kind in ("exact", "ivf-compressed"):
        folder = tmp_path / kind
        made.save(folder, search=SearchConfig(kind=kind, nprobe=None if kind == "exact" else 999))
        bank = ReferenceBank.load(folder)
        shards = ShardedSearch(bank, 2, "ray")
        assert len(shards) == len(bank)
        for k in (1, 7, len(bank)):
            one, several = bank.searcher().nearest(queries, k), shards.nearest(queries, k)
            np.testing.assert_allclose(several.similarity, one.similarity, atol=1e-6)
            if kind == "exact":
                wider = bank.searcher().nearest(queries, min(k + 1, len(bank))).similarity
                gaps = np.abs(np.diff(wider, axis=1, prepend=9, append=-9))[:, : k + 1]
                clear = np.minimum(gaps[:, :-1], gaps[:, 1:]) > 1e-6  # no near tie, whose order rounding may change
                assert clear.mean() > 0.5
                np.testing.assert_array_equal(several.ids[clear], one.ids[clear])
    with pytest.raises(BadOption, match="bank-shards is 6; wanted 1 to 5, the number of sections"):
        ShardedSearch(bank, 6, "ray")
    with pytest.raises(BadOption, match="engine-workers is 'local'; wanted ray or"):
        ShardedSearch(bank, 2, "local")
    next((folder / "sections").rglob("vectors.npy")).write_bytes(b"")
    with pytest.raises(Damaged, match=r"vectors\.npy of section"):
        ShardedSearch(bank, 1, "ray")


def test_slides_and_folds_on_a_cluster_are_those_of_one_process(cluster, tmp_path):
    """By command: prediction tables are equal but for rounding, scores byte for byte."""
    from cmrcnet.cli import app

    model = small_model()
    model.save_pretrained(tmp_path / "model")
    build_bank(model, small_cohort()).save(tmp_path / "bank")
    slides = tmp_path / "slides"
    slides.mkdir()
    for number in range(2):
        Image.fromarray(noise_slide(number, 500).read(0, 0, 500, 500)).save(slides / f"{number}.png")
    cohort = write_cohort(synthetic_cohort(patients=2, spots=20, genes=40, seed=1), tmp_path / "cohort")
    small = ["--config", "tiny", "--set", "panel.n_hvg=20", "evaluation.set_size=5"]
    (slides / "broken.png").write_bytes(b"no picture")
    for engine in ("local", "ray"):
        where = ["--engine-workers", engine, "--workers", "1" if engine == "local" else "2"]
        words = ["predict", str(tmp_path / "model"), str(slides), "--bank", str(tmp_path / "bank"), "--mpp", "0.5"]
        words += ["--grid-um", "66", *(["--bank-shards", "2"] if engine == "ray" else [])]
        assert app.main([*words, "--out", str(tmp_path / f"tables-{engine}"), *where]) == app.PROBLEMS_FOUND
        words = [
            "evaluate",
            str(cohort),
            "--out",
            str(tmp_path / f"run-{engine}"),
            "--methods",
            "gene-mean",
            "random-k",
        ]
        assert app.main([*words, *small, *where]) == 0
    for number in range(2):
        one, other = (
            anndata.read_h5ad(tmp_path / f"tables-{engine}" / f"{number}.h5ad") for engine in ("local", "ray")
        )
        np.testing.assert_allclose(one.X, other.X, rtol=1e-6, atol=1e-6)  # shards round their similarities otherwise
    assert "broken.png" in (tmp_path / "tables-ray" / "summary.csv").read_text()
    one, other = ((tmp_path / f"run-{engine}" / "scores.csv").read_bytes() for engine in ("local", "ray"))
    assert one == other


@pytest.mark.parametrize("workers", [0, -1, True, 1.5, "many"])
def test_a_number_of_workers_below_one_is_refused(workers):
    with pytest.raises(BadOption, match="a number of workers, 1 or more, or auto"):
        WorkerOptions("local", workers)


def test_auto_takes_no_more_workers_than_tasks_cores_or_half_the_memory_allow(monkeypatch):
    monkeypatch.setattr("cmrcnet.workers.WORKER_BYTES", 1)
    assert WorkerOptions("local", "auto").count(1) == 1
    assert WorkerOptions("local", "auto").count(1000) == min(cores(), 1000)
    monkeypatch.setattr("cmrcnet.workers.cores", lambda: 64)
    assert WorkerOptions("local", "auto").count(3) == 3
    half = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    monkeypatch.setattr("cmrcnet.workers.WORKER_BYTES", half // 5)
    assert WorkerOptions("local", "auto").count(1000) == 5
    monkeypatch.setattr("cmrcnet.workers.WORKER_BYTES", 2 * half)
    assert WorkerOptions("local", "auto").count(1000) == 1
    assert WorkerOptions("local", 7).count(3) == 3


def test_a_cluster_that_is_not_there_is_refused_in_a_sentence():
    with pytest.raises(BadOption, match="engine-workers is 'spark'; wanted local, ray, or ray://HOST:PORT"):
        WorkerOptions("spark")


def test_what_cannot_be_sent_says_why():
    assert why_not_picklable(1, [2]) == "" and "lambda" in why_not_picklable(lambda: 1)
