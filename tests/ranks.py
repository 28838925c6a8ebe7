"""Runs a function on several real gloo ranks and gives back what each returned."""

import contextlib
import multiprocessing as mp
import os
import socket
import time
import traceback

import torch

from andscale.distributed import World, process_group


def run_ranks(function, world_size, *arguments, grouped=True):
    """Call ``function(world, *arguments)`` on ``world_size`` processes; returns the list of their results.

    Args:
        function: what every rank runs.
        world_size: how many processes; even one is a process of its own.
        arguments: the same for all.
        grouped: false for functions that join the process group themselves.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    # not forked from here: a child of a process whose OpenMP threads have worked hangs at its first parallel loop
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "andscale.training.loop", "andscale.indexing.rebuild"])
    queue = context.SimpleQueue()
    processes = [
        context.Process(
            target=_rank, args=(queue, function, World(rank, world_size, rank, world_size), port, arguments, grouped)
        )
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    answers = []
    while len(answers) < world_size:
        if not queue.empty():
            answers.append(queue.get())
        else:
            dead = [p.exitcode for p in processes if p.exitcode not in (None, 0)]
            assert not dead or not queue.empty(), f"a rank ended with exit code {dead[0]} and without an answer"
            time.sleep(0.01)
    for process in processes:
        process.join()
    failures = [text for _, ok, text in answers if not ok]
    assert not failures, failures[0]
    return [result for _, _, result in sorted(answers, key=lambda a: a[0])]


def _rank(queue, function, world, port, arguments, grouped):
    torch.set_num_threads(1)
    if world.world_size > max(1, torch.cuda.device_count()):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # more ranks than GPUs: on the CPU, as where there is none
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    try:
        with process_group(world) if grouped else contextlib.nullcontext():
            queue.put((world.rank, True, function(world, *arguments)))
    except BaseException:
        queue.put((world.rank, False, traceback.format_exc()))
