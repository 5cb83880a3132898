"""The runs of sweeps: which there are, which are done, and what of other settings stands in their way."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ablate_beds import Arm, groups_file, make_arm
from ablate_records import Line, Recorder, differing, drop_lines, read_lines, same_run
from ablate_sweep import Sweep
from clip_more.config import ConfigError, TrainConfig
from matrix_jobs import Job, append_record


@dataclass(frozen=True)
class Planned:
    """A run of a sweep: its job, the names of its lines, and the file they go to."""

    sweep: Sweep
    arm: Arm
    job: Job
    names: tuple[str, ...]
    file: Path

    @property
    def head(self) -> Line:
        """What its line says of it."""
        assert isinstance(self.job.after, Recorder)
        return self.job.after.head

    def lines(self) -> dict[str, Line]:
        """Those of its lines that are there, by arm."""
        seed = self.head["seed"]
        own = [line for line in read_lines(self.file) if line["seed"] == seed and line["arm"] in self.names]
        return {line["arm"]: line for line in own}


def plan(sweeps: Sequence[Sweep], out: Path, evidence: Path, data_root: str | None = None) -> list[Planned]:
    """All runs, sweep by sweep; one seed of all arms comes before the next.

    Args:
        sweeps: In their order.
        out: Folder of runs and photos.
        evidence: Folder of the lines.
        data_root: See `ablate_beds.make_arm`.

    Raises:
        ConfigError: An arm is no recipe.
    """
    commit, planned = _commit(), []
    for sweep in sweeps:
        for seed in sweep.seeds:
            for name in sweep.arms:
                arm = make_arm(sweep, name, seed, out, data_root)
                head = {"sweep": sweep.name, "bed": sweep.bed, "judged_on": sweep.judged_on, "recipe": sweep.recipe,
                        "arm": name, "seed": seed, "values": arm.values, "settings": arm.settings,
                        "commit": commit}  # fmt: skip
                derived = sweep.derived(name)
                recorder = Recorder(head, arm.config, derived, groups_file(sweep, seed, out))
                job = Job(arm.config, seconds=arm.seconds, after=recorder)
                lines = (name, *derived)
                planned.append(Planned(sweep, arm, job, lines, evidence / f"{sweep.name}.jsonl"))
    return planned


def _commit() -> str | None:
    """Of the code that the runs are made with; `+` behind it where the working tree is ahead of it."""

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(Path(__file__).parents[1]), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    commit = git("rev-parse", "--short", "HEAD")
    return f"{commit}+" if commit and git("status", "--porcelain", "--", "clip_more", "eval") else commit or None


def settle(planned: list[Planned], *, again: bool, table: bool) -> None:
    """Refuse lines and folders of other settings, or remove them with `again`.

    Raises:
        ConfigError: Naming the line and what differs, or the folder.
    """
    for run in planned:
        stale = {name: why for name, line in run.lines().items() if (why := differing(line, run.head))}
        if stale and (table or not again):
            name, why = next(iter(stale.items()))
            raise ConfigError(
                f"{run.file}: the line of arm {name!r}, seed {run.head['seed']}, is of other settings than "
                f"{run.sweep.path}: {'; '.join(why)}. Run it anew with --again, or give the arm another name"
            )
        if stale and not table:
            drop_lines(run.file, [run.lines()[name] for name in stale])
        if table or len(run.lines()) == len(run.names):
            continue
        folder = run.job.config.run_folder
        other = _other_settings(run.job.config)
        if other and not again:
            raise ConfigError(f"{folder} is a run of other settings: {other}. Run it anew with --again")
        written = folder / "lines.json"
        made = {line["arm"] for line in json.loads(written.read_text())} if written.is_file() else set(run.names)
        if stale or other or not made >= set(run.names):
            shutil.rmtree(folder, ignore_errors=True)  # its weights are gone: what is to be judged is trained again


def _other_settings(config: TrainConfig) -> str:
    """What differs in the recipe of a folder in which something was trained; nothing where it is this one."""
    from clip_more.training.run_folder import changed_keys, has_trained

    folder, recipe = config.run_folder, config.run_folder / "config.yaml"
    trained = has_trained(folder) or (folder / "report" / "results.json").is_file()
    changes = changed_keys(recipe, config) if trained and recipe.is_file() else {}
    return "; ".join(f"{key}: {before!r} there, {now!r} now" for key, (before, now) in changes.items())


def take_over(planned: list[Planned]) -> None:
    """Runs that another sweep has made, under whatever name, are not made again."""
    for run in planned:
        if len(run.names) == 1 and not run.lines() and (line := same_run(run.file.parent, run.head)):
            append_record(run.file, line | {key: run.head[key] for key in ("sweep", "arm")})
