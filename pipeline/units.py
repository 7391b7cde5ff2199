"""Work units on a Ray cluster: each is one JSON text that is answered by another."""

from __future__ import annotations

import contextlib
import json
import threading
import traceback
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import ray
import ray.data
import ray.exceptions
from ray.experimental import internal_kv
from ray.util.annotations import RayDeprecationWarning

from pipeline import errors
from pipeline.errors import DatasetError, InputError, JobError, ParvaeError
from pipeline.machine import trim_memory
from pipeline.preflight import Cluster

__all__ = ["run_units"]
MAX_BLOCKS = 10_000
"""Ray Data blocks that a list of work units is cut into at most."""
TRIES = 4
"""How often a work unit is begun whose worker dies: by a node that goes, or by the unit itself."""
_DEATHS = (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError)
_STOPPED = "parvae-stopped"
"""Namespace of Ray's key-value store for runs that have failed. Ray's Python has no public one for a word to all."""
_FEW = 8
"""Units a worker for which no actors are started: a process that is there already takes them as tasks."""


def run_units(
    units: Iterable[Any],
    worker: type,
    arguments: dict[str, Any],
    cluster: Cluster,
    workers: int,
    gpu: bool = False,
    overlap: int = 1,
) -> Iterator[dict[str, Any]]:
    """Runs `worker(**arguments)` over work units with Ray Data, yielding results as they come.

    Identity is the caller's: each item is one JSON text, each result one JSON text, and every item must be
    answered. A pool of actors does many units; reading, computing and writing may overlap inside an actor. A few
    units become tasks, for which Ray takes processes that earlier ones of the same job have left.

    What a worker raised comes when no unit is under way any more: units that have begun end, the others are left. So
    nothing appears in a folder that the caller clears. What ended meanwhile is told first, unless the input was bad
    and nothing had been told before.

    Args:
        units: JSON-serializable items.
        worker: A class whose instances turn an item (a dict) into a result (a dict).
        arguments: Its constructor's arguments.
        cluster: The cluster.
        workers: Units that are worked on in processes of their own at once.
        gpu: Whether each process gets a GPU.
        overlap: Units that a process works on at once, in threads (`pipeline.turns`).

    Raises:
        ParvaeError: What a worker raised, or that a unit stayed without an answer.
    """
    items = [json.dumps(item) for item in units]
    if not items:
        return
    handle = ray.put({"worker": worker, "arguments": arguments})
    dataset = _pool(items, handle, cluster, min(workers, len(items)), gpu, overlap)
    waiting, failed, told, stopped = dict.fromkeys(items), None, False, False
    try:
        for item, envelope in _answers(dataset):
            waiting.pop(item, None)
            if failed is None and "error" in envelope:
                failed = getattr(errors, envelope["error"])(*envelope["arguments"])
            elif "result" in envelope and (told or not isinstance(failed, InputError)):
                told = True
                yield dict(envelope["result"])
            stopped = stopped or (failed is not None and _stop(handle))
    except _DEATHS as error:
        raise failed or _death(error, waiting) from error
    except ray.exceptions.RayError as error:
        raise failed or JobError(f"a Ray task failed: {error}") from error
    if failed is not None:
        raise failed
    if waiting:
        raise JobError(
            f"{len(waiting)} of {len(items)} work units gave no answer, the first {_name(waiting)}; run the job again"
        )


def _death(error: Exception, waiting: Iterable[str]) -> JobError:
    """What the death of workers means."""
    if getattr(error, "actor_init_failed", False):
        return JobError(f"a worker did not start: {error}; is every node set up alike?")
    return JobError(
        f"workers died on the same work unit {TRIES} times (the first unit without an answer: {_name(waiting)}): "
        "is a node too small for it, or do nodes go before one is done? what is finished stays, run the same "
        "command to continue"
    )


def _answers(dataset: ray.data.Dataset) -> Iterator[tuple[str, dict[str, Any]]]:
    """Items and the envelopes of their results, as they come."""
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for item, text in zip(*(batch.column(name).to_pylist() for name in ("item", "result")), strict=True):
            yield item, json.loads(text)


def _pool(
    items: list[str], handle: ray.ObjectRef, cluster: Cluster, workers: int, gpu: bool, overlap: int
) -> ray.data.Dataset:
    """A dataset of results: items go through actors or tasks, each around a worker of its own."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # a unit may take hours: choosing coders is one
    context.memory_usage_poll_interval_s = None  # every look walks through all of a worker's pages
    dataset = ray.data.from_items([{"item": item} for item in items], override_num_blocks=min(len(items), MAX_BLOCKS))
    common: dict[str, Any] = {
        "fn_kwargs": {"handles": [handle]},
        "batch_size": None,
        "batch_format": "pyarrow",
        "num_cpus": 0 if gpu else cluster.cpus_per_worker(workers),
        "num_gpus": 1 if gpu else 0,
        "memory": cluster.memory_per_worker() or None,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)  # Ray Data 2.60 names no other way to bound the tries
        if overlap == 1 and not gpu and len(items) <= _FEW * workers:
            tasks = ray.data.TaskPoolStrategy(size=workers)
            return dataset.map_batches(_unit_task, compute=tasks, max_retries=TRIES - 1, **common)
        actors = ray.data.ActorPoolStrategy(
            size=workers,
            max_tasks_in_flight_per_actor=2,
            max_concurrent_calls_per_actor=overlap,
            enable_true_multi_threading=overlap > 1,
        )
        return dataset.map_batches(_UnitActor, compute=actors, max_task_retries=TRIES - 1, **common)


def _name(items: Iterable[str]) -> str:
    """What the first of some items is called."""
    text = next(iter(items), "{}")
    item = json.loads(text)
    return str(item.get("path", text))[:300] if isinstance(item, dict) else text[:300]


class _UnitActor:
    """The actor around a worker: JSON in, JSON out."""

    def __init__(self) -> None:
        self._worker: Any = None
        self._making = threading.Lock()
        self._stopped = False

    def __call__(self, batch: pa.Table, handles: list[Any]) -> pa.Table:
        results: list[str] = []
        failed = False
        for text in batch.column("item").to_pylist():  # after an error the driver hears of it first
            envelope = {} if failed else self._answer(json.loads(text), handles[0])
            failed = failed or "result" not in envelope
            results.append(json.dumps(envelope))
        return pa.table({"item": batch.column("item"), "result": pa.array(results, pa.large_string())})

    def _answer(self, item: Any, handle: Any) -> dict[str, Any]:
        """The result in an envelope: Ray would lose the type of an exception on its way to the driver."""
        self._stopped = self._stopped or _is_stopped(handle)
        if self._stopped:
            return {}
        try:
            with self._making:
                if self._worker is None:
                    content = ray.get(handle)
                    self._worker = content["worker"](**content["arguments"])
            return {"result": self._worker(item)}
        except ParvaeError as error:
            blamed = [error.path] if isinstance(error, DatasetError) else []
            return {"error": type(error).__name__, "arguments": [str(error), *blamed]}
        except OSError as error:
            return {"error": JobError.__name__, "arguments": [f"{error}; mend it and run the job again"]}
        except Exception:  # Ray would end the run at once, with units under way
            what = f"a worker failed on {_name([json.dumps(item)])}: {traceback.format_exc()}"
            return {"error": JobError.__name__, "arguments": [what]}


_MADE: dict[str, _UnitActor] = {}
"""What the tasks of the last run made in this process, by where its content lies."""


def _unit_task(batch: pa.Table, handles: list[Any]) -> pa.Table:
    """Does what the actor does: the worker that a process has made stays for the next task of the same run."""
    key = handles[0].hex()
    if key not in _MADE:
        _MADE.clear()
        trim_memory()
        _MADE[key] = _UnitActor()
    try:
        return _MADE[key](batch, handles)
    finally:
        trim_memory()  # this process may be idle from now on


def _stop(handle: ray.ObjectRef) -> bool:
    """Lets the workers of a run begin no further unit; says whether that was heard."""
    with contextlib.suppress(ray.exceptions.RayError):  # the head does not answer for a moment
        internal_kv._internal_kv_put(handle.hex(), b"", namespace=_STOPPED)
        return True
    return False


def _is_stopped(handle: ray.ObjectRef) -> bool:
    with contextlib.suppress(ray.exceptions.RayError):
        return bool(internal_kv._internal_kv_exists(handle.hex(), namespace=_STOPPED))
    return False
