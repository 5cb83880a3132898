"""Jobs run with a bar, the time that is left, and a first signal that lets them save."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

from tqdm import tqdm

from matrix_jobs import Job, Record, run_all


def run_shown(left: list[Job], chosen: int, processes: int, keep: Callable[[Record], None]) -> bool:
    """Do the jobs; whether a signal stopped them before the end.

    Args:
        left: In their order.
        chosen: How many there are with those that were done before.
        processes: Of one thread each.
        keep: Called with each record as it comes, before anything is printed.
    """
    signals: list[int] = []

    def note(number: int, _: object) -> None:
        signals.append(number)
        signal.signal(number, signal.SIG_DFL)  # the second time at once
        os.write(2, b"\nsaving what is going, then stopping\n")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    costs, done, spent_now = {job.name: job.seconds for job in left}, 0.0, 0.0
    total, stopped = sum(costs.values()), False
    try:
        with tqdm(total=chosen, initial=chosen - len(left), unit="run", disable=None) as bar:
            bar.set_postfix_str(f"about {total / processes / 60:.0f} min to go")
            for record in run_all(left, processes, lambda: bool(signals)):
                keep(record)
                stopped = stopped or record["state"] == "stopped"
                done, spent_now = done + costs[record["run"]], spent_now + record["seconds"]
                minutes = (total - done) * spent_now / done / processes / 60
                bar.update(record["state"] == "done")
                bar.set_postfix_str(f"about {minutes:.0f} min to go")
                _say(record, minutes)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return stopped or bool(signals)


def _say(record: Record, minutes: float) -> None:
    reasons = "".join(f"\n    {part}: {reason}" for part, reason in record["failures"].items())
    line = f"{record['run']}: {record['state']} in {record['seconds']:.1f} s, about {minutes:.0f} min to go{reasons}"
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()
