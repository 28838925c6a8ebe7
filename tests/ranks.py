"""Runs a function on several real gloo ranks and gives back what each returned."""

import os
import socket
import traceback

import torch.multiprocessing as mp


def run_ranks(function, world_size, *arguments):
    """Call ``function(world, *arguments)`` on ``world_size`` processes; returns the list of their results."""
    if world_size == 1:
        from andscale.distributed import World, process_group

        world = World()
        with process_group(world):
            return [function(world, *arguments)]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    context = mp.get_context("fork")
    queue = context.SimpleQueue()
    processes = [
        context.Process(target=_rank, args=(queue, function, rank, world_size, port, arguments))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    answers = [queue.get() for _ in processes]
    for process in processes:
        process.join()
    failures = [text for _, ok, text in answers if not ok]
    assert not failures, failures[0]
    return [result for _, _, result in sorted(answers, key=lambda a: a[0])]


def _rank(queue, function, rank, world_size, port, arguments):
    import torch

    from andscale.distributed import World, process_group

    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    world = World(rank, world_size, rank, world_size)
    try:
        with process_group(world):
            queue.put((rank, True, function(world, *arguments)))
    except BaseException:
        queue.put((rank, False, traceback.format_exc()))
