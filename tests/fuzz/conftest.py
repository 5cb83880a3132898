"""Tells what became of the inputs of each reader."""

from collections import Counter

import pytest

from tests.fuzz.harness import TALLY


@pytest.fixture(autouse=True)
def fuzzed(request):
    """Tells the summary what this test gave to which reader."""
    before = {reader: Counter(counts) for reader, counts in TALLY.items()}
    yield
    for reader, counts in TALLY.items():
        if given := counts - before.get(reader, Counter()):
            request.node.user_properties.append(("fuzzed", (reader, dict(given))))
