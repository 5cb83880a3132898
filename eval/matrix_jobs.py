"""Runs of the matrix: which are done, and the processes that do the others."""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import os
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from clip_more.config import TrainConfig

TRAINING = "training"
Record = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One run, with its second stages.

    Attributes:
        config: Of the run.
        methods: Of the second stage.
        seconds: About what it takes on a free core.
        after: Called last with the run's folder; what it returns goes into the record. It travels to other processes.
    """

    config: TrainConfig
    methods: tuple[str, ...] = ()
    seconds: float = 1.0
    after: Callable[[Path], Any] | None = None

    @property
    def name(self) -> str:
        """`<bed>/<run>`."""
        return f"{self.config.run_folder.parent.name}/{self.config.run_name}"

    def results(self, line: str = TRAINING) -> Path:
        """Where the results of the run, or of one of its methods, are."""
        folder = self.config.run_folder
        return folder / ("report" if line == TRAINING else f"stage2/{line}") / "results.json"

    def done(self) -> bool:
        """Whether nothing is left to do."""
        return all(self.results(line).is_file() for line in (TRAINING, *self.methods))

    def check(self) -> None:
        """Refuse to take the results of another run for its own.

        Raises:
            ConfigError: If the folder is a finished run of other settings.
        """
        from clip_more.training.run_folder import finished

        finished(self.config)


def run_job(job: Job) -> Record:
    """Train, then every second stage; what fails is written down and stops nothing else.

    What is printed meanwhile goes to `<bed>/logs/<run>.txt`.

    Returns:
        `run`; `state`: done, failed or stopped; `failures`: training, a method, or `after`, to its reason; `seconds`;
        `ended`; of a job with `after` that is done `result`.
    """
    from clip_more.training.signals import Stopped

    start, state, failures, result = time.time(), "done", {}, {}
    log = job.config.run_folder.parent / "logs" / f"{job.config.run_name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", 1, encoding="utf-8") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        try:
            for line in (TRAINING, *job.methods):
                try:
                    _do(job, line)
                except Exception as error:
                    traceback.print_exc()
                    failures[line] = " ".join(f"{type(error).__name__}: {error}".split())
                    if line == TRAINING:
                        break
            if job.after and not failures:
                try:
                    result = {"result": job.after(job.config.run_folder)}
                except Exception as error:
                    traceback.print_exc()
                    failures["after"] = " ".join(f"{type(error).__name__}: {error}".split())
            state = "failed" if failures else "done"
        except (Stopped, KeyboardInterrupt):
            state = "stopped"
    gc.collect()  # accelerate's objects know each other
    ended = time.time()
    seconds = round(ended - start, 2)
    record = {"run": job.name, "state": state, "failures": failures, "seconds": seconds, "ended": round(ended, 2)}
    return record | result


def _do(job: Job, line: str) -> None:
    if line == TRAINING:
        import torch

        from clip_more.training.loop import train
        from clip_more.verbs import quiet

        torch.set_num_threads(1)
        quiet()
        folder = train(job.config)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # a finished run needs none
    else:
        from clip_more.stage2.run import stage2

        stage2(job.config.run_folder, line)


def run_all(jobs: Iterable[Job], processes: int, stop: Callable[[], bool] = lambda: False) -> Iterator[Record]:
    """Do the jobs, each record as it comes; with one process in this one.

    Args:
        jobs: In their order.
        processes: Each with one thread, and a list of jobs shared between them.
        stop: Whether to end; runs that are going save, and their records come too.
    """
    if processes > 1:
        yield from _in_processes(list(jobs), processes, stop)
        return
    for job in jobs:
        if stop():
            return
        record = run_job(job)
        yield record
        if record["state"] == "stopped":
            return


class _Worker:
    """A process that does one job after another."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self.job: Job | None = None
        self.since = 0.0

    def give(self, job: Job) -> None:
        self.job, self.since = job, time.time()
        self.pipe.send(job)

    def take(self, *, stopping: bool) -> Record:
        """The record of its job; of a process that died, one that says so."""
        assert self.job is not None
        try:
            record = self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            state, reason = "failed", f"its process died (exit code {self.process.exitcode}); out of memory, perhaps"
            if stopping:
                state, reason = "stopped", ""
            ended = time.time()
            record = {
                "run": self.job.name,
                "state": state,
                "failures": {TRAINING: reason} if reason else {},
                "seconds": round(ended - self.since, 2),
                "ended": round(ended, 2),
            }
        self.job = None
        return record


def _serve(pipe: Connection) -> None:
    """The life of a worker: it ends when the pipe does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # while it trains, the run has its own handler, and saves
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            record = run_job(pipe.recv())
            pipe.send(record)
            if record["state"] == "stopped":
                return


def _in_processes(jobs: list[Job], processes: int, stop: Callable[[], bool]) -> Iterator[Record]:
    os.environ["OMP_NUM_THREADS"] = "1"
    workers: list[_Worker] = []
    stopping = False
    try:
        while jobs or any(worker.job for worker in workers):
            if stop() and not stopping:
                stopping = True
                jobs.clear()
                for worker in workers:
                    if worker.job:
                        worker.process.terminate()  # saves at its next step
            workers = [worker for worker in workers if worker.job or worker.process.is_alive()]
            idle = sum(worker.job is None for worker in workers)
            for _ in range(min(processes - len(workers), len(jobs) - idle)):
                workers.append(_Worker())
            for worker in workers:
                if worker.job is None and jobs:
                    worker.give(jobs.pop(0))
            busy = [worker for worker in workers if worker.job]
            ready = wait([worker.pipe for worker in busy], timeout=0.5)
            for worker in busy:
                if worker.pipe in ready:
                    yield worker.take(stopping=stopping or stop())
    finally:
        for worker in workers:
            worker.pipe.close()
            worker.process.join(timeout=10)


def append_record(path: Path, record: Record) -> None:
    """Add a line; half a line that a kill left is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        file.seek(max(0, file.tell() - 1))
        cut = file.read() not in (b"", b"\n")
        file.write(("\n" * cut + json.dumps(record, ensure_ascii=False) + "\n").encode())


def read_records(path: Path) -> list[Record]:
    """All whole lines."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return [record for record in found if isinstance(record, dict) and "run" in record]


def spent(records: Iterable[Record]) -> tuple[float, float]:
    """Seconds of all runs together, and of the clock while any of them was going."""
    spans = sorted((record["ended"] - record["seconds"], record["ended"]) for record in records)
    clock, until = 0.0, float("-inf")
    for start, end in spans:
        clock += max(0.0, end - max(start, until))
        until = max(until, end)
    return sum(end - start for start, end in spans), clock
