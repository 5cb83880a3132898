"""How all processes end for the same reason; real ones are in test_processes.py."""

from types import SimpleNamespace

import pytest

from clip_more.training import guards
from clip_more.training.guards import TrainingError, on_main, shared_failure
from clip_more.training.signals import Stopped

MAIN, OTHER = (SimpleNamespace(num_processes=2, is_main_process=rank == 0, process_index=rank) for rank in range(2))


class DistBackendError(RuntimeError):
    """Named as torch's own."""


@pytest.fixture
def others(monkeypatch):
    """What a process hears of the others, and (`told`, `waited`) what it does about them."""
    listening = SimpleNamespace(reason=None, told=[], waited=[], over=[], start=lambda: None)
    listening.tell = listening.told.append
    listening.heard = SimpleNamespace(wait=listening.waited.append)
    listening.done = SimpleNamespace(set=lambda: listening.over.append(True))
    monkeypatch.setattr(guards, "_Others", lambda accelerator: listening)
    return listening


def fail(error):
    with shared_failure(OTHER):
        raise error


def test_nothing_is_told_where_nothing_fails(others):
    with shared_failure(OTHER):
        assert not others.over
    assert others.over
    assert not others.told


@pytest.mark.parametrize("error", [ValueError("mine"), OSError("NCCL.tar: Connection reset"), KeyError("mine")])
def test_a_reason_of_its_own_is_told_at_once_and_stays(others, error):
    with pytest.raises(type(error)) as raised:
        fail(error)
    assert raised.value is error
    assert others.told == [f"process 1: {error}"]
    assert others.waited == [0]
    assert others.over


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[gloo/transport/tcp/pair.cc:525] Connection closed by peer"),
        RuntimeError("Connection reset"),
        DistBackendError("the pipe is broken"),
    ],
)
def test_a_broken_connection_waits_for_the_others_reason(others, error):
    with pytest.raises(TrainingError, match="another process is gone without a word"):
        fail(error)
    assert others.waited == [guards._PATIENCE]
    assert not others.told
    others.reason = "process 0: the disk is full"
    with pytest.raises(TrainingError, match=r"^ended because of process 0: the disk is full$") as raised:
        fail(error)
    assert raised.value.__cause__ is error


def test_an_error_that_another_process_caused_is_not_told_as_ones_own(others):
    others.reason = "process 0: no room"
    with pytest.raises(TrainingError, match="ended because of process 0: no room"):
        fail(ValueError("an empty batch"))
    assert not others.told


def test_a_stop_that_all_agreed_on_is_told_to_nobody(others):
    with pytest.raises(Stopped):
        fail(Stopped("saved at step 3", agreed=True))
    assert not others.told


def test_a_stop_of_one_process_is_told_with_its_number(others):
    with pytest.raises(Stopped):
        fail(Stopped("SIGTERM, with no step to save"))
    assert others.told == ["process 1, which was asked to stop: SIGTERM, with no step to save"]


@pytest.mark.parametrize("error", [OSError("no room"), Stopped("no room")])
def test_what_ends_the_main_process_is_sent_to_all(monkeypatch, error):
    sent = []
    monkeypatch.setattr(guards, "broadcast_object_list", lambda values: sent.append(list(values)))

    def action():
        raise error

    with pytest.raises(type(error)) as raised:
        on_main(MAIN, action)
    assert raised.value is error
    assert sent == [["no room"]]


def test_another_process_leaves_it_to_the_main_one_and_fails_with_it(monkeypatch):
    done = []
    monkeypatch.setattr(guards, "broadcast_object_list", lambda values: None)
    on_main(OTHER, lambda: done.append(1))
    assert not done
    monkeypatch.setattr(guards, "broadcast_object_list", lambda values: values.__setitem__(0, "no room"))
    with pytest.raises(TrainingError, match=r"^the main process failed: no room$"):
        on_main(OTHER, lambda: done.append(1))
    assert not done
