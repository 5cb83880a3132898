"""Two processes of one job that no launcher watches, as under srun.

They come from the server of killing.py and not from the test's own process: that one has threads by then, and a fork of
it may wait for ever for a lock that one of them held.
"""

import faulthandler
import os
import socket
import time

import torch

from tests.training.killing import SERVER

# Longest that a test waits for both; they take seconds.
PATIENCE = 240


def process(rank, port, output, act, arguments):
    """One of the two: what it prints goes to a file, and where it hangs too."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        ACCELERATE_USE_CPU="true",
    )  # fmt: skip
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    faulthandler.dump_traceback_later(PATIENCE - 10, file=descriptor)
    torch.set_num_threads(1)
    act(*arguments)


def fork_two(folder, act, *arguments):
    """Call `act` in two processes, each with its own arguments; fail where one does not end.

    Returns:
        By rank exit code and what was printed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    outputs = [folder / f"{rank}.txt" for rank in range(2)]
    for output in outputs:
        output.unlink(missing_ok=True)
    ranks = [
        SERVER.Process(target=process, args=(rank, port, output, act, own))
        for rank, (output, own) in enumerate(zip(outputs, arguments, strict=True))
    ]
    for rank in ranks:
        rank.start()
    until = time.monotonic() + PATIENCE
    for rank in ranks:
        rank.join(max(0.0, until - time.monotonic()))
    hanging = [rank for rank in ranks if rank.is_alive()]
    for rank in hanging:
        rank.kill()
        rank.join()
    printed = [output.read_text() for output in outputs]
    assert not hanging, f"{len(hanging)} of two processes did not end:\n" + "\n".join(text[-2000:] for text in printed)
    return [(rank.exitcode, text) for rank, text in zip(ranks, printed, strict=True)]
