"""Trainers that die: `clip-more train` in a process of its own, killed when a test says so.

Processes are forked by a server that has imported everything already: a start costs no imports, and what is forked
has no threads. A trainer tells its test through a pipe which stage it is in and which step it has done. The pipe's
other end closes with the last of the trainer's processes, data workers included.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clip_more.cli import main

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "pytest",
        "datasets",
        "matplotlib.pyplot",
        "scipy.stats",
        "sklearn.metrics",
        "torch._dynamo",
        "transformers.models.clip.modeling_clip",
        "transformers.models.clip.processing_clip",
        "clip_more.training.loop",
        "tests.training.forked",
    ]
)

# What a trainer is inside of, by the function that does it.
STAGES = {
    "loading": "clip_more.training.open_run.load_data",
    "judging the untouched CLIP": "clip_more.training.loop.judge_untouched",
    "head start": "clip_more.training.start.head_start",
    "resume": "clip_more.training.state.TrainingState.resume",
    "save": "clip_more.training.state.TrainingState.save",
    "prune": "clip_more.training.state.prune",
    "save of the best": "clip_more.training.state.TrainingState.save_best",
    "validation": "clip_more.training.loop._validate",
    "report": "clip_more.training.loop.report",
    "export": "clip_more.training.report.export_run",
    "files for transformers": "clip_more.hub.export.write_transformers",
}

# Random moments to try: one in the suite, always the same; new ones with every soak.
KILLS = int(os.environ.get("CLIP_MORE_KILLS", "1"))

# One line a killed run, printed at the end of the tests: setting, where it was hit, what it went on from, identical.
KILLED: list[tuple[str, str, str, str]] = []

# Longest that a test waits for a trainer; one takes seconds.
PATIENCE = 180.0


@dataclass(frozen=True)
class Death:
    """By the trainer's own hand, in the n-th time that it is inside a stage.

    Attributes:
        stage: One of `STAGES`.
        time: Which time it is there, from 1.
        operation: Dies before this file operation of the stage (opening to write, making, renaming, removing), from 0.
        size: Dies in the middle of the first file that grows beyond this many bytes.
    """

    stage: str
    time: int = 1
    operation: int | None = None
    size: int | None = None


@dataclass
class Trainer:
    """`clip-more train` as a process; a context manager that leaves no process behind.

    Attributes:
        recipe: From `write_recipe`.
        death: When it kills itself, if it shall.
        inside: Stages that it was in when last heard of.
        step: The last step that it has done.
        resumed: The step that it went on from; None where it started anew.
        heard: All that it told.
    """

    recipe: Path
    death: Death | None = None
    inside: list[str] = field(default_factory=list)
    step: int = 0
    resumed: int | None = None
    heard: list[str] = field(default_factory=list)

    def __enter__(self) -> Trainer:
        self._ear, mouth = SERVER.Pipe(duplex=False)
        self._process = SERVER.Process(target=_train, args=(self.recipe, self.output, self.death, mouth))
        self._process.start()
        mouth.close()
        self.reach("alive")  # the first waits for the server
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        self._ear.close()

    @property
    def output(self) -> Path:
        """File that gets what the trainers of this recipe print."""
        return self.recipe.with_name("output.txt")

    @property
    def where(self) -> str:
        """Where it was when last heard of, in words."""
        return f"step {self.step}, {self.inside[-1] if self.inside else 'between stages'}"

    def kill(self) -> None:
        """Kill the trainer alone; its data workers must notice."""
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGKILL)

    def signal_all(self, number: int) -> None:
        """Send a signal to the trainer and its data workers, as schedulers and Ctrl-C do."""
        assert self._process.pid is not None
        os.killpg(self._process.pid, number)

    def reach(self, what: str) -> None:
        """Wait until it tells this: `step 3`, or `+save` and `-save` around a stage."""
        self._listen(PATIENCE, lambda: what in self.heard)
        assert what in self.heard, f"{what!r} was not reached, but {self.heard}\n{self.output.read_text()}"

    def run_for(self, seconds: float) -> bool:
        """Let it run so long; whether it still does."""
        return not self._listen(seconds, lambda: False)

    def end(self) -> int:
        """Wait until it and its data workers are gone; returns the exit code, negative for a signal."""
        closed = self._listen(PATIENCE, lambda: False)
        assert closed, f"it, or a data worker of it, is still there after {PATIENCE:g} s\n{self.output.read_text()}"
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode

    def _listen(self, seconds: float, enough: Callable[[], bool]) -> bool:
        """Hear the trainer until `enough`, the time is over, or (True) it has nothing to say any more."""
        until = time.monotonic() + seconds
        while not enough() and (left := until - time.monotonic()) > 0:
            if not self._ear.poll(left):
                return False
            try:
                self._note(self._ear.recv())
            except EOFError:
                return True
        return False

    def _note(self, what: str) -> None:
        self.heard.append(what)
        if what.startswith("+"):
            self.inside.append(what[1:])
        elif what.startswith("-"):
            self.inside.remove(what[1:])
        elif what.startswith("step "):
            self.step = int(what.split()[1])
        elif what.startswith("resumed "):
            self.step = self.resumed = int(what.split()[1])


def finish(recipe: Path) -> tuple[Trainer, float]:
    """Run a trainer to the end of its run; returns it and its seconds."""
    with Trainer(recipe) as trainer:
        begun = time.monotonic()
        code = trainer.end()
    assert code == 0, f"exit code {code}\n{trainer.output.read_text()}"
    return trainer, time.monotonic() - begun


def _train(recipe: Path, output: Path, death: Death | None, mouth: Any) -> None:
    """The process."""
    import torch

    os.setsid()
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.environ["ACCELERATE_USE_CPU"] = "true"  # bit for bit is a promise of CPUs
    torch.set_num_threads(1)
    multiprocessing.set_start_method(None, force=True)  # data workers start as they do outside a test
    if KILLS == 1:
        _leave_figures_out()
    for stage, place in STAGES.items():
        _mark(stage, place, mouth.send, death)
    _tell_steps(mouth.send)
    mouth.send("alive")
    sys.exit(main(["train", str(recipe)]))


def _leave_figures_out() -> None:
    """They are a good part of a run of seconds, and nobody looks at them."""
    import clip_more.evaluation.plots
    import clip_more.training.report

    def refuse(*_: Any, **__: Any) -> None:
        raise ImportError("not here")

    clip_more.evaluation.plots.plot_ap_by_frequency = refuse
    clip_more.training.report.plot_ap_by_frequency = refuse


def _mark(stage: str, place: str, tell: Callable[[str], None], death: Death | None) -> None:
    """Tell when the function at `place` begins and ends; let it die there."""
    owner, name = _resolve(place)
    function, begun = getattr(owner, name), 0

    def told(*arguments: Any, **options: Any) -> Any:
        nonlocal begun
        tell(f"+{stage}")
        begun += 1
        with _doomed(death) if death and (death.stage, death.time) == (stage, begun) else nullcontext():
            result = function(*arguments, **options)
        tell(f"-{stage}")
        return result

    setattr(owner, name, told)


def _resolve(place: str) -> tuple[Any, str]:
    path, _, name = place.rpartition(".")
    try:
        return importlib.import_module(path), name
    except ModuleNotFoundError:
        module, _, inner = path.rpartition(".")
        return getattr(importlib.import_module(module), inner), name


def _tell_steps(tell: Callable[[str], None]) -> None:
    from clip_more.training.metrics_log import MetricsLog

    write = MetricsLog.write

    def told(self: Any, event: str, **values: Any) -> None:
        write(self, event, **values)
        if event in ("train", "resume"):
            tell(f"{'step' if event == 'train' else 'resumed'} {values['step']}")

    MetricsLog.write = told  # type: ignore[method-assign]


@contextmanager
def _doomed(death: Death) -> Iterator[None]:
    left, limits = death.operation, resource.getrlimit(resource.RLIMIT_FSIZE)

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if left is None or not _changes_files(event, arguments):
            return
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    sys.addaudithook(count)  # for the life of the process
    if death.size is not None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (death.size, limits[1]))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # as sudden as SIGKILL
    yield
    left = None
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def _changes_files(event: str, arguments: tuple[Any, ...]) -> bool:
    if event == "open":
        return bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate")
