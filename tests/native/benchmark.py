"""How long collectives take outside of a graph, and how soon a killed rank is seen. Prints a table.

    python tests/native/benchmark.py [RANKS [ROUNDS]]

The rounds of the sizes follow each other in turns, so that what else the machine does meets all of them.
"""

import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from rankmq.schemas.errors import GroupError
from rankmq.workers.collectives import SharedGroup, library, segment_name

KILOBYTES = (4, 64, 1024, 16384)
KINDS = ("all_reduce", "all_gather", "reduce_scatter")
KILLS = 10


def time_calls(path: Path, name: str, rank: int, size: int, rounds: int, answer: Connection) -> None:
    """Milliseconds of each call, by kind, size and round."""
    group = SharedGroup(path, timeout=60)
    group.open(name, rank, size)
    took: dict[tuple[str, int], list[list[float]]] = {(kind, kb): [] for kind in KINDS for kb in KILOBYTES}
    for _ in range(rounds):
        for (kind, kb), times in took.items():
            given = np.full(kb * 256, rank, np.float32)
            call = getattr(group, kind)
            group.barrier()
            times.append([])
            for _ in range(max(5, min(200, 20_000 // kb))):
                began = time.perf_counter()
                call(given)
                times[-1].append((time.perf_counter() - began) * 1e3)
    answer.send(took)
    group.barrier()
    group.close()


def wait_in_vain(path: Path, name: str, rank: int, size: int, answer: Connection) -> None:
    """When this rank learned that another is dead."""
    group = SharedGroup(path, timeout=60)
    group.open(name, rank, size)
    answer.send("waits")
    try:
        if rank == 0:
            signal.pause()
        group.barrier()
    except GroupError:
        answer.send(time.monotonic())
    group.close()


def main() -> None:
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    context, path = multiprocessing.get_context("fork"), library()

    def start(target, *args):
        name, pipes, processes = segment_name("benchmark", 0), [], []
        for rank in range(size):
            ours, theirs = context.Pipe(duplex=False)
            processes.append(context.Process(target=target, args=(path, name, rank, size, *args, theirs)))
            processes[-1].start()
            theirs.close()
            pipes.append(ours)
        return processes, pipes

    write = sys.stdout.write
    write(f"{size} ranks on {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    write("kind            KB       p50 of each round (ms)                        p50     p99\n")
    processes, pipes = start(time_calls, rounds)
    took = pipes[0].recv()
    for process in processes:
        process.join()
    for (kind, kb), times in took.items():
        each = " ".join(f"{np.percentile(it, 50):.3f}" for it in times)
        whole = np.concatenate(times)
        write(f"{kind:15}{kb:6}   {each:44} {np.percentile(whole, 50):7.3f} {np.percentile(whole, 99):7.3f}\n")

    seen = []
    for _ in range(KILLS):
        processes, pipes = start(wait_in_vain)
        for pipe in pipes:
            pipe.recv()
        time.sleep(0.1)
        killed_at = time.monotonic()
        os.kill(processes[0].pid, signal.SIGKILL)
        seen.append(max(pipe.recv() for pipe in pipes[1:]) - killed_at)
        for process in processes:
            process.join()
    write("a killed rank is seen by the last survivor after (ms): " + " ".join(f"{it * 1e3:.0f}" for it in seen) + "\n")


if __name__ == "__main__":
    main()
