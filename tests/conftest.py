"""Fixtures that every room's tests share. Tests never reach the network."""

import os

# Before any test module imports a library that reads it.
os.environ["HF_HUB_OFFLINE"] = "1"

from pathlib import Path

import pytest

from tests.summaries import print_kills, print_tally


@pytest.fixture(scope="session", autouse=True)
def offline() -> None:
    """Fail at once where huggingface_hub was imported before this file and might still go to the network."""
    from huggingface_hub import constants

    assert constants.HF_HUB_OFFLINE, "huggingface_hub was imported before tests/conftest.py set HF_HUB_OFFLINE=1"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Here and not in the folders' own files: with xdist the process that prints does not read those."""
    print_kills(terminalreporter)
    print_tally(terminalreporter)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real data that CLIP_MORE_TEST_DATA names."""
    folder = os.environ.get("CLIP_MORE_TEST_DATA")
    if not folder:
        pytest.skip("CLIP_MORE_TEST_DATA is not set: it names the folder of real photos and lists")
    if not Path(folder).is_dir():
        pytest.skip(f"CLIP_MORE_TEST_DATA: there is no folder {folder}")
    return Path(folder)
