"""Search a bank above one machine's memory: Ray actors hold some sections each, and their nearest are merged."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np

from cmrcnet.errors import BadOption, Incompatible, WorkerDied
from cmrcnet.retrieval.bank import ReferenceBank
from cmrcnet.retrieval.bank_index import read_lists
from cmrcnet.retrieval.store import SECTIONS, BankSection, Manifest
from cmrcnet.search.exact import ExactSearch, Neighbours, Searcher, ranked, require_query
from cmrcnet.search.ivf import IVFSearch, SearchParameters
from cmrcnet.search.stacked_arrays import StackedRows
from cmrcnet.workers import TRIES, connect_ray, is_loss


class ShardedSearch:
    """The search of a stored bank, spread over the nodes of a Ray cluster.

    Every query goes to every shard, and the nearest of all are kept. An exact search finds what one bank finds, but
    for rounding: BLAS may choose other routines for other shapes, so that similarities differ by up to 1e-6 and near
    ties may swap. Shards of an approximate index scan the lists that the bank's own would, and more
    where a shard's part of them is short: what is found is at least as near. A shard that is lost with its node is
    opened again on another.

    Parameters
    ----------
    bank : ReferenceBank
        Opened from a folder, which all nodes see under the same path. Only the actors read its vectors.
    shards : int
        Actors; each holds as many whole sections as the others, or one more.
    engine : str
        As in `cmrcnet.workers.WorkerOptions`; not local.

    Raises
    ------
    BadOption
        Fewer than one shard, more than sections, or no Ray cluster.
    Damaged, Incompatible, MissingExtra
    """

    def __init__(self, bank: ReferenceBank, shards: int, engine: str) -> None:
        sections = len(bank.entries)
        if type(shards) is not int or not 1 <= shards <= sections:
            raise BadOption("bank-shards", shards, f"1 to {sections}, the number of sections in {bank.name}")
        if engine == "local":
            raise BadOption("engine-workers", engine, "ray or ray://HOST:PORT, with --bank-shards")
        ray = connect_ray(engine)
        self._shape = bank.vectors.shape
        parts = [(int(part[0]), int(part[-1]) + 1) for part in np.array_split(np.arange(sections), shards)]
        self._first_row = [sum(map(len, bank.entries[:first])) for first, _ in parts]
        how = {"num_cpus": 0, "max_restarts": TRIES, "max_task_retries": TRIES, "scheduling_strategy": "SPREAD"}
        kind, folder = ray.remote(_Shard).options(**how), str(Path(bank.name).absolute())
        self._actors = [kind.remote(folder, bank.fingerprint, *part) for part in parts]
        self._ask("ready")

    def __len__(self) -> int:
        return self._shape[0]

    def nearest(self, queries: np.ndarray, k: int) -> Neighbours:
        """Find the k nearest bank spots of each query; see `search.exact.Searcher`.

        Parameters
        ----------
        queries : array, shape (queries, dim), float32
        k : int
            At most the bank's length.

        Raises
        ------
        ShapeMismatch, BadOption, WorkerDied
        """
        import ray

        found = self._ask("nearest", ray.put(require_query(queries, k, self._shape)), k)
        ids = [each.ids + first for each, first in zip(found, self._first_row, strict=True)]
        return ranked(np.concatenate(ids, axis=1), np.concatenate([each.similarity for each in found], axis=1), k)

    def _ask(self, method: str, *arguments: object) -> list:
        """What each shard answers; an error of a shard as itself."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            return ray.get([getattr(actor, method).remote(*arguments) for actor in self._actors])
        except RayTaskError as error:
            raise error.cause from None
        except RayError as error:
            if not is_loss(error):
                raise
            raise WorkerDied("a shard of the bank", f"lost {TRIES + 1} times; {type(error).__name__}") from None


class _Shard:
    """An actor: the search in the sections `first` to `last` (exclusive) of a bank."""

    def __init__(self, folder: str, bank: str, first: int, last: int) -> None:
        self._folder, self._bank, self._first, self._last = Path(folder), bank, first, last

    @cached_property
    def _search(self) -> Searcher:
        folder, manifest = self._folder, Manifest.read(self._folder)
        if manifest.fingerprint != self._bank:
            raise Incompatible(folder, "it was edited after its shards were opened", "run again")
        records, genes = manifest.sections, {}
        vectors = StackedRows(
            [
                BankSection.open(folder / SECTIONS / record["name"], record, manifest.dim, manifest.rank, genes).vectors
                for record in records[self._first : self._last]
            ]
        )
        if manifest.index is None:
            return ExactSearch(vectors)
        lists, list_of_spot = read_lists(folder, manifest.index, manifest.fingerprint)
        start = sum(record["spots"] for record in records[: self._first])
        steps = tuple((int(k), int(value)) for k, value in manifest.index["nprobe"])
        mine, compressed = list_of_spot[start : start + len(vectors)], manifest.index["kind"] == "ivf-compressed"
        return IVFSearch(vectors, lists, mine, SearchParameters(steps), compressed=compressed)

    def ready(self) -> int:
        """Open the sections, and return their number of spots."""
        return len(self._search)

    def nearest(self, queries: np.ndarray, k: int) -> Neighbours:
        """The k nearest of the shard, or all where it holds fewer."""
        return self._search.nearest(queries, min(k, len(self._search)))
