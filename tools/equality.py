"""Train the same 20 steps on 1, 2 and 4 processes, in different numbers of passes, and print how far apart they end."""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from longshot.detector.system.distributed import Process
    from longshot.tools.checks.equality_cases import Data

PRECISIONS = ("float64", "float32")  # as in checks/equality.py, which needs torch


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="examples: longshot equality; torchrun --nnodes 2 --nproc-per-node 8 tools/equality.py --batch-size 32",
    )
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4], help="started here; none under torchrun")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--batch-size", type=int, default=8, help="a multiple of the number of processes")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    arguments = parser.parse_args()
    under_torchrun = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    processes = [int(os.environ["WORLD_SIZE"])] if under_torchrun else arguments.processes
    if min(arguments.steps, arguments.batch_size, *processes) < 1:
        parser.error("--steps, --batch-size, --processes: expected at least 1")
    if any(arguments.batch_size % count for count in processes):
        parser.error(f"--batch-size: {arguments.batch_size} is not divisible by each of {processes} processes")
    if under_torchrun:
        from longshot.detector.errors import readable_errors

        with readable_errors():
            sys.exit(_compare(arguments))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    rest = [str(Path(__file__).resolve()), *sys.argv[1:]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    codes = [subprocess.run([*torchrun, f"--nproc-per-node={n}", *rest], env=environment).returncode for n in processes]
    sys.exit(max(codes))


def _compare(arguments: argparse.Namespace) -> int:
    """Exit code: 0 if nothing differs by more than rounding explains."""
    import torch

    from longshot.detector.system.distributed import process_group
    from longshot.tools.checks import equality
    from longshot.tools.checks.equality_cases import make_data

    # TensorFloat-32 rounds to three digits, and not alike for every number of images.
    torch.backends.cudnn.allow_tf32 = False
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(Path(folder), steps=arguments.steps, batch_size=arguments.batch_size)
        expected = None
        if os.environ["RANK"] == "0":  # by itself: the others wait for it to come into the group
            device = "cuda" if arguments.device != "cpu" and torch.cuda.is_available() else "cpu"
            expected = equality.references(data, arguments.precision, torch.device(device))
        with process_group(arguments.device) as process:
            return _print_rows(expected, data, arguments, process)


def _print_rows(expected: dict | None, data: "Data", arguments: argparse.Namespace, process: "Process") -> int:
    """Print the table, row by row; returns the exit code."""
    from longshot.tools.checks import equality

    def show(text: str) -> None:
        if process.rank == 0:
            print(text, flush=True)

    where = f"{process.world_size} process{'es' * (process.world_size > 1)} on {process.device.type}"
    show(
        f"\n{where}, {arguments.steps} steps of {arguments.batch_size} images: differences from one process in one pass"
    )
    for images_per_pass in equality.passes(data, process):
        show(equality.emptiness(data, process, images_per_pass))
    show(equality.heading(arguments.precision))
    equal = []
    for row in equality.compare(expected, data, arguments.precision, process):
        show(equality.line(row))
        equal.append(row.is_equal)
    allowed = " and ".join(f"{equality.TOLERANCES[precision]:g} in {precision}" for precision in arguments.precision)
    show(f"{equal.count(False)} of {len(equal)} rows differ by more than {allowed}")
    return int(not all(equal))


if __name__ == "__main__":
    main()
