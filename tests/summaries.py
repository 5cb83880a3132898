"""Tables at the end of a test run: the runs that were killed, and the inputs that were fuzzed."""

from collections import Counter
from typing import Any

import pytest


def told(reporter: pytest.TerminalReporter, name: str) -> list[tuple[str, Any]]:
    """What tests left under `name` in their `user_properties`, with their ids; these cross from xdist's workers."""
    reports = {id(report): report for reports in reporter.stats.values() for report in reports}.values()
    ended = (report for report in reports if getattr(report, "when", None) == "teardown")
    return [(report.nodeid, value) for report in ended for key, value in report.user_properties if key == name]


def print_kills(terminalreporter: pytest.TerminalReporter) -> None:
    """One line a killed run."""
    kills = [kill for _, kill in told(terminalreporter, "killed")]
    if not kills:
        return
    line = "{:<5}{:<21}{:<62}{:<14}{:<9}".format
    terminalreporter.write_line(
        "\n" + line("kill", "setting", "hit at (step done, inside what)", "went on from", "identical")
    )
    for number, kill in enumerate(kills, 1):
        terminalreporter.write_line(line(number, *kill))
    same = sum(kill[-1] == "yes" for kill in kills)
    terminalreporter.write_line(f"{len(kills)} runs killed; {same} ended bit-identical to the uninterrupted run")


def print_tally(terminalreporter: pytest.TerminalReporter) -> None:
    """What became of the inputs of each reader."""
    from tests.fuzz.harness import INPUTS

    tally: dict[str, Counter[str]] = {}
    tests: dict[str, set[str]] = {}
    for test, (reader, counts) in told(terminalreporter, "fuzzed"):
        tally.setdefault(reader, Counter()).update(counts)
        tests.setdefault(reader, set()).add(test)
    if not tally:
        return
    bad = {report.nodeid for key in ("failed", "error") for report in terminalreporter.stats.get(key, ())}
    line = "{:<32}{:>10}{:>10}{:>10}   {}".format
    terminalreporter.write_line("\n" + line("fuzzed reader", "inputs", "read", "refused", "").rstrip())
    total: Counter[str] = Counter()
    for reader, counts in sorted(tally.items()):
        total += counts
        if INPUTS != 200:  # in the suite the total is enough
            terminalreporter.write_line(line(reader, *_figures(counts), _verdict(tests[reader] & bad)))
    every = set().union(*tests.values())
    terminalreporter.write_line(line(f"all {len(tally)}", *_figures(total), _verdict(every & bad)))


def _figures(counts: Counter[str]) -> list[str]:
    return [f"{number:,}" for number in (counts.total(), counts["read"], counts["refused"])]


def _verdict(failed: set[str]) -> str:
    return "FAILED, see above" if failed else "all accounted for"
