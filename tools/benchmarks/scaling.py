"""What training on two processes of one machine gains over one: a tiny detector on CPUs, gloo, one thread each."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist

from longshot.datasets.classes import Classes
from longshot.datasets.loading.batches import Batch
from longshot.datasets.loading.dataset import Targets
from longshot.detector.build import build_criterion, build_network, build_run
from longshot.detector.config.schema import Config, parse_config
from longshot.detector.system.distributed import Process
from longshot.detector.system.progress import progress_bar
from longshot.detector.training.step import optimize, parallel
from longshot.tools.planning.communication import collectives

NUM_CLASSES, NUM_IMAGES, SIDE = 80, 4, 192  # images of each process in each step

ONE, INDEPENDENT, TOGETHER = "1 process", "2 independent processes", "2 processes, one run"
_PROCESSES = {ONE: ("a",), INDEPENDENT: ("a", "b"), TOGETHER: ("rank 0", "rank 1")}


class Seconds(NamedTuple):
    """Of a step: the shortest of all rounds, by the clock, and of the processor, over all processes."""

    clock: float
    processor: float


class Scaling(NamedTuple):
    """What `measure` found."""

    seconds: dict[str, Seconds]
    sent: float  # bytes that a process of two sends in a step


def measure(*, steps: int, repeats: int) -> Scaling:
    """Times steps of one process, of two that know nothing of each other, and of two in one run.

    Every process has the same number of images in a step, whoever it works with. In turn, so that whatever else the
    machine does hits all alike; a first round warms up.
    """
    rounds: dict[str, list[Seconds]] = {name: [] for name in _PROCESSES}
    with _workers() as workers:
        for _ in progress_bar(range(repeats + 1), desc="scaling", unit="round"):
            for name, members in _PROCESSES.items():
                rounds[name].append(_steps([workers[member] for member in members], steps))
    best = {name: Seconds(*map(min, zip(*taken[1:], strict=True))) for name, taken in rounds.items()}
    config = _config()
    network = build_network(config.model, NUM_CLASSES).train()
    messages = collectives(network, build_criterion(config, [1] * NUM_CLASSES, 1), passes=1)
    return Scaling(best, sum(message.sent(2) for message in messages))


def table(measured: Scaling) -> str:
    """A line for each way to use the processes."""
    one = measured.seconds[ONE]
    lines = [f"{'':26}{'s/step':>9}{'images/s':>10}{'/ 1 process':>13}{'CPU s/step':>12}"]
    for name, seconds in measured.seconds.items():
        processes = len(_PROCESSES[name])
        lines.append(
            f"{name:26}{seconds.clock:>9.4f}{processes * NUM_IMAGES / seconds.clock:>10.2f}"
            f"{processes * one.clock / seconds.clock:>13.3f}{seconds.processor:>12.4f}"
        )
    return "\n".join(lines)


def findings(measured: Scaling) -> str:
    """The efficiency, and what was sent."""
    independent, together = measured.seconds[INDEPENDENT], measured.seconds[TOGETHER]
    return (
        f"efficiency of two processes in one run, against two independent ones: {independent.clock / together.clock:.3f} by "
        f"the clock, {independent.processor / together.processor:.3f} by CPU time\n"
        f"each process sends {measured.sent / 2**20:.2f} MB per step"
    )


@contextmanager
def _workers() -> Iterator[dict[str, Connection]]:
    """Two processes that work alone and two that work together, each at the other end of a pipe."""
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])  # imports what all of them need, once
    pipes, processes = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for rank in (0, 1):
            for name, world_size in (("ab"[rank], 1), (f"rank {rank}", 2)):
                pipes[name], end = context.Pipe()
                arguments = (end, Process(rank % world_size, world_size, torch.device("cpu")), f"{folder}/rendezvous")
                processes.append(context.Process(target=_work, args=arguments, name=name, daemon=True))
                processes[-1].start()
                end.close()
        try:
            yield pipes
        finally:
            for pipe in pipes.values():
                pipe.close()  # which ends them
            for process in processes:
                process.join(timeout=10)
                process.kill()


def _work(pipe: Connection, process: Process, rendezvous: str) -> None:
    """Takes as many steps as the pipe asks for, time after time, and answers with the seconds of each."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if process.world_size > 1:
        dist.init_process_group(
            "gloo", init_method=Path(rendezvous).as_uri(), rank=process.rank, world_size=process.world_size
        )
    run = build_run(_config(), _classes(), process, num_images=1)
    model, batch = parallel(run.network.train(), process), _batch()
    while True:
        try:
            steps = pipe.recv()
        except EOFError:
            return
        clock, processor = time.perf_counter(), time.process_time()
        for _ in range(steps):
            optimize(run, model, batch, process, images_per_pass=NUM_IMAGES, precision="fp32", clip_norm=1.0)
        pipe.send(((time.perf_counter() - clock) / steps, (time.process_time() - processor) / steps))


def _steps(pipes: Sequence[Connection], steps: int) -> Seconds:
    try:
        for pipe in pipes:
            pipe.send(steps)
        taken = [pipe.recv() for pipe in pipes]
    except (EOFError, OSError) as error:
        raise RuntimeError("a process that was to be timed has died; its error is above") from error
    return Seconds(max(clock for clock, _ in taken), sum(processor for _, processor in taken))


def _config() -> Config:
    """A detector of 0.8 million parameters."""
    return parse_config(
        {
            "model": {
                "backbone": {"name": "thin", "norm": "gn"},
                "fpn": {"channels": 32, "levels": 3},
                "head": {"num_convs": 1, "width": 32},
                "anchors": {"base_size": 8.0, "ratios": [1.0], "scales": [1.0]},
            },
            "matching": {"matcher": {"name": "atss"}},
            "loss": {"classification": {"name": "equalized_focal"}, "box": {"name": "giou"}},
            "optimizer": {"lr": 1e-4},
        },
        where="bench scaling",
    )


def _classes() -> Classes:
    ids = list(range(1, NUM_CLASSES + 1))
    return Classes(ids, [f"class {i}" for i in ids], ["f"] * NUM_CLASSES, [1] * NUM_CLASSES)


def _batch() -> Batch:
    """Images of noise, with an object each."""
    size = (SIDE, SIDE)
    images = list(torch.randint(256, (NUM_IMAGES, 3, *size), dtype=torch.uint8))
    target = Targets(torch.tensor([[30.0, 40.0, 120.0, 130.0]]), torch.tensor([7]), torch.zeros(0, 4))
    return Batch(
        images,
        [target] * NUM_IMAGES,
        [0] * NUM_IMAGES,
        list(range(NUM_IMAGES)),
        [size] * NUM_IMAGES,
        [size] * NUM_IMAGES,
    )
