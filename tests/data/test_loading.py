import contextlib
import io
import multiprocessing
import os
import select
import signal
import subprocess
import sys

import PIL.Image
import pytest
import torch
from accelerate import Accelerator

from clip_more.data.form import make_dataset
from clip_more.data.loading import _explained, batches, photo_loader
from clip_more.data.opening import PhotoError
from clip_more.data.photos import Photos
from clip_more.data.samplers import make_order
from clip_more.data.stream import PhotoStream

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="sigtimedwait and pidfd are Linux's")


def brightness(photo):
    return torch.full((3, 1, 1), photo.getpixel((0, 0))[0] / 255)


def noisy(photo):
    return brightness(photo) + torch.rand(3, 1, 1)


def failing(photo):
    raise RuntimeError("a fault of the transform")


def encoded(value):
    file = io.BytesIO()
    PIL.Image.new("RGB", (2, 2), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


def photos_of(images, transform=brightness, seed=None):
    return Photos(make_dataset(images, [[0]] * len(images), ["cat"]), transform, seed=seed)


@pytest.fixture(autouse=True)
def nothing_left():
    """A worker that a failed test leaves stuck must not keep the whole suite from ending."""
    yield
    for child in multiprocessing.active_children():
        child.kill()
        child.join(5)


@pytest.fixture
def fifo(tmp_path):
    """A file whose opening waits until somebody writes, as on a disk that is gone."""
    path = str(tmp_path / "stuck.png")
    os.mkfifo(path)
    return path


def loader_of(photos, **options):
    return photo_loader(photos, **{"workers": 1, "batch_size": 1, **options})


def indices(found):
    return [index for batch in found for index in batch["index"].tolist()]


def ends(pid):
    """A call that waits for the end of a process, ten seconds at most, and says whether it came."""
    descriptor = os.pidfd_open(pid)

    def ended():
        with contextlib.closing(os.fdopen(descriptor)):
            return bool(select.select([descriptor], [], [], 10)[0])

    return ended


def stuck_worker(photos, fifo):
    """Wait until a worker reads the FIFO; returns its process id and what keeps it there."""
    writer = os.open(fifo, os.O_WRONLY)  # waits for the reader
    (pid,) = (pid for pid, name in photos.in_hand().items() if name == fifo)
    return pid, writer


@pytest.mark.parametrize("workers", [0, 2])
def test_photos_come_in_order_the_last_batch_uneven(workers):
    photos = photos_of([encoded(value) for value in range(7)])
    found = list(batches(photo_loader(photos, workers=workers, batch_size=3), photos))
    assert [batch["index"].tolist() for batch in found] == [[0, 1, 2], [3, 4, 5], [6]]
    assert (torch.cat([batch["pixel_values"] for batch in found])[:, 0, 0, 0] * 255).round().tolist() == [*range(7)]


def test_a_stream_gives_the_same_samples_for_any_workers_and_any_start():
    photos = photos_of([encoded(value) for value in range(7)], noisy, seed=5)
    order = make_order("class_balanced", (torch.arange(7).numpy(), torch.arange(7).numpy() % 2), 7, seed=5)

    def read(workers, start=0):
        stream = PhotoStream(order, 2, accumulation=2, start=start, steps=6)
        loader = photo_loader(photos, workers=workers, batch_sampler=stream)
        return [
            (batch["index"].tolist(), batch["pixel_values"].flatten().tolist()) for batch in batches(loader, photos)
        ]

    whole = read(0)
    assert len(whole) == 12
    assert read(2) == whole
    assert read(2, start=4) == whole[8:]


def test_workers_leave_the_generator_of_the_run_alone():
    photos = photos_of([encoded(value) for value in range(4)])
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(batches(loader_of(photos), photos))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_time_to_wait_is_for_workers_alone():
    photos = photos_of([encoded(0)])
    assert loader_of(photos, workers=0, timeout=9.0).timeout == 0
    assert loader_of(photos, workers=1, timeout=9.0).timeout == 9.0


@pytest.mark.parametrize("workers", [0, 1])
def test_a_photo_that_cannot_be_read_is_told_in_one_sentence(tmp_path, workers):
    photos = photos_of([encoded(0), str(tmp_path / "gone.png")])
    with pytest.raises(PhotoError, match=r"^cannot read photo \S*gone\.png: there is no such file\. [^\n]*\Z"):
        list(batches(loader_of(photos, workers=workers), photos))


def test_other_errors_of_a_worker_are_passed_on():
    photos = photos_of([encoded(0)], failing)
    with pytest.raises(RuntimeError, match="a fault of the transform"):
        list(batches(loader_of(photos), photos))


@pytest.mark.parametrize("prepared", [False, True])
def test_photos_that_workers_are_stuck_at_are_named_and_the_workers_ended(fifo, prepared):
    photos = photos_of([encoded(0), encoded(1), encoded(2), fifo])
    loader = loader_of(photos, workers=2, timeout=0.6)
    if prepared:
        loader = Accelerator(cpu=True).prepare_data_loader(loader)
    with pytest.raises(PhotoError, match=rf"^no batch came for 0\.6 s; the data workers are stuck at {fifo}\. See wh"):
        indices(batches(loader, photos))
    assert multiprocessing.active_children() == []


def _train_until_stuck(fifo, told):
    photos = photos_of([encoded(0), fifo])
    try:
        indices(batches(loader_of(photos, timeout=0.5), photos))
    except PhotoError as error:
        told.send(str(error))


def test_a_process_ends_although_its_worker_is_stuck(fifo):
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    trainer = context.Process(target=_train_until_stuck, args=(fifo, theirs))
    trainer.start()
    try:
        assert ours.poll(60)
        assert fifo in ours.recv()
        trainer.join(60)
        assert trainer.exitcode == 0
    finally:
        trainer.kill()


@needs_linux
def test_a_killed_worker_is_named_with_its_photo_where_the_next_batch_is_asked_for(fifo):
    photos = photos_of([encoded(0), fifo, encoded(2)])
    loaded = batches(loader_of(photos), photos)
    assert next(loaded)["index"].tolist() == [0]
    pid, writer = stuck_worker(photos, fifo)
    ended = ends(pid)
    os.kill(pid, signal.SIGKILL)
    assert ended()
    torch.rand(3)  # training goes on: nothing is raised here
    with pytest.raises(PhotoError, match=rf"^data worker {pid} died while it read {fifo} \(killed by signal: Killed\)"):
        next(loaded)
    os.close(writer)
    assert multiprocessing.active_children() == []


@needs_linux
def test_the_handler_of_torch_is_back_after_the_last_batch():
    photos = photos_of([encoded(0), encoded(1)])
    outer = batches(loader_of(photos), photos)
    next(outer)
    held = signal.getsignal(signal.SIGCHLD)
    inner = photos_of([encoded(0)])
    assert indices(batches(loader_of(inner), inner)) == [0]
    assert signal.getsignal(signal.SIGCHLD) == held
    list(outer)
    assert signal.getsignal(signal.SIGCHLD).__module__.startswith("torch.")


@needs_linux
def test_signals_of_a_scheduler_leave_workers_at_work():
    photos = photos_of([encoded(value) for value in range(24)])
    loaded = batches(loader_of(photos, workers=2), photos)
    first = next(loaded)["index"].tolist()
    workers = sorted(child.pid for child in multiprocessing.active_children())
    assert len(workers) == 2
    for name in ("TERM", "INT", "USR1"):
        subprocess.run(["kill", f"-{name}", *map(str, workers)], check=True)
    for pid in workers:
        os.kill(pid, signal.SIGINT)
    assert first + indices(loaded) == list(range(24))


@needs_linux
@pytest.mark.parametrize("prepared", [False, True])
def test_workers_are_born_with_signals_blocked_and_the_trainer_gets_them_back(tmp_path, monkeypatch, prepared):
    def born(worker):
        blocked = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1} <= signal.pthread_sigmask(signal.SIG_BLOCK, ())
        (tmp_path / f"{worker}").write_text(str(blocked))

    monkeypatch.setattr("clip_more.data.loading._in_worker", born)
    photos = photos_of([encoded(value) for value in range(4)])
    loader = loader_of(photos, workers=2)
    loaded = batches(Accelerator(cpu=True).prepare_data_loader(loader) if prepared else loader, photos)
    next(loaded)
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())
    list(loaded)
    assert [(tmp_path / name).read_text() for name in "01"] == ["True", "True"]


@needs_linux
def test_the_trainers_own_sigterm_ends_a_worker_even_where_it_is_stuck(fifo):
    photos = photos_of([encoded(0), fifo])
    loaded = batches(loader_of(photos), photos)
    next(loaded)
    pid, writer = stuck_worker(photos, fifo)
    ended = ends(pid)
    subprocess.run(["kill", "-TERM", str(pid)], check=True)
    (worker,) = multiprocessing.active_children()
    assert not select.select([worker.sentinel], [], [], 0.3)[0], f"it ended with {worker.exitcode}"
    worker.terminate()
    assert ended()
    worker.join()
    assert worker.exitcode == 0
    os.close(writer)


def _train_until_killed(fifo, told):
    photos = photos_of([encoded(0), encoded(1), fifo])
    loaded = batches(loader_of(photos, workers=2), photos)
    next(loaded)
    pid, _ = stuck_worker(photos, fifo)
    told.send((pid, sorted(child.pid for child in multiprocessing.active_children())))
    signal.pause()


@needs_linux
def test_workers_of_a_killed_trainer_end_those_that_are_stuck_too(fifo):
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    trainer = context.Process(target=_train_until_killed, args=(fifo, theirs))
    trainer.start()
    try:
        assert ours.poll(60)
        stuck, workers = ours.recv()
        assert stuck in workers
        assert len(workers) == 2
        waits = [ends(pid) for pid in workers]
        holder = os.open(fifo, os.O_WRONLY)  # or the trainer's end would close, and the read with it
    finally:
        trainer.kill()
    try:
        assert all(ended() for ended in waits)
    finally:
        os.close(holder)
        trainer.join()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "DataLoader timed out after 300 seconds",
            "no batch came for 300 s; the data workers are stuck at a.jpg, c.jpg. See whether the disk or network "
            "share answers; if it is only slow, raise worker_timeout (0 waits for ever)",
        ),
        (
            "DataLoader worker (pid 12) is killed by signal: Killed. ",
            "data worker 12 died while it read a.jpg (killed by signal: Killed). Memory ran out, perhaps: set fewer "
            "workers",
        ),
        (
            "DataLoader worker (pid 12) is killed by signal: Segmentation fault. ",
            "data worker 12 died while it read a.jpg (killed by signal: Segmentation fault). If it happens again, "
            "replace the photo: it may crash its decoder",
        ),
        (
            "DataLoader worker (pid 13) is killed by signal: Bus error. It is possible that dataloader's",
            "data worker 13 died (killed by signal: Bus error). Shared memory is full, it seems: enlarge /dev/shm, or "
            "set fewer workers",
        ),
        (
            "Caught PhotoError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
            "FileNotFoundError: b.jpg\n\nclip_more.data.opening.PhotoError: cannot read photo b.jpg: odd\none. Drop\n",
            "cannot read photo b.jpg: odd\none. Drop",
        ),
        (
            "DataLoader worker (pid(s) 99, 12) exited unexpectedly",
            "data worker 99 died (exited unexpectedly). Memory ran out, perhaps: set fewer workers",
        ),
        ("CUDA error: out of memory", None),
    ],
)
def test_what_torch_says_of_workers_becomes_a_sentence(text, sentence):
    in_hand = {os.getpid(): "mine.jpg", 12: "a.jpg", 13: None, 14: "c.jpg"}
    assert _explained(text, in_hand) == sentence


def test_nothing_in_hand_is_said_so():
    assert "; no data worker has a photo open. " in _explained("DataLoader timed out after 5 seconds", {12: None})
