"""Prints what became of the inputs of each reader."""

from collections import Counter

import pytest

from tests.conftest import told
from tests.fuzz.harness import INPUTS, TALLY


@pytest.fixture(autouse=True)
def fuzzed(request):
    """Tells the summary what this test gave to which reader."""
    before = {reader: Counter(counts) for reader, counts in TALLY.items()}
    yield
    for reader, counts in TALLY.items():
        if given := counts - before.get(reader, Counter()):
            request.node.user_properties.append(("fuzzed", (reader, dict(given))))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
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
