"""Kill the processes of a small run at random moments under torchrun, and compare it with one that is left alone."""

import argparse
import sys
import tempfile
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog="example: longshot soak --kills 30")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument(
        "--processes", type=int, default=2, help="default 2; 1 and 2 must not differ by a bit, more by rounding"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", type=Path, help="keep both runs and what they said here; must be empty")
    arguments = parser.parse_args()
    if arguments.folder and arguments.folder.exists() and any(arguments.folder.iterdir()):
        parser.error(f"--folder: {arguments.folder} is not empty")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        sys.exit(_soak(folder, arguments.kills, arguments.processes, arguments.seed))


def _soak(folder: Path, kills: int, processes: int, seed: int) -> int:
    """Exit code: 0 if all kills were done and nothing differs, or no more than rounding explains."""
    from longshot.tools.checks import soak

    steps = soak.STEPS_PER_KILL * (kills + 1)
    config = soak.write_config(folder, steps, processes)
    alone = soak.run(config, folder / "undisturbed", processes=processes, steps=steps)
    if alone.code:
        print(f"the undisturbed run failed; see {folder / 'undisturbed.log'}")
        return 1
    killed = soak.run(config, folder / "killed", processes=processes, steps=steps, kills=kills, seed=seed)
    print(f"{processes} processes, {steps} steps: {alone.seconds:.0f} s undisturbed, {killed.seconds:.0f} s with kills")
    print(f"kills: {killed.kills.total()} ({', '.join(f'{n} {moment}' for moment, n in sorted(killed.kills.items()))})")
    if killed.code:
        print(f"torchrun ended with exit code {killed.code}; see {folder / 'killed.log'}")
        return 1
    differences = soak.compare(folder / "undisturbed", folder / "killed")
    print(f"\n{'':16}{'values':>10}{'different':>12}{'relative':>12}")
    for part in differences:
        print(f"{part.part:16}{part.values:10,}{part.different:12,}{part.relative:12.1e}")
    too_much = [part.part for part in differences if soak.is_too_much(part, processes)]
    print(f"\n{killed.kills.total()} kills, {sum(part.different for part in differences)} differences")
    if processes not in soak.EXACT:
        print(f"weights, averages and EFL's state may differ by {soak.TOLERANCE:g}, relative to their norm")
    print(f"too much: {', '.join(too_much)}" if too_much else "as it should be")
    return int(bool(too_much) or killed.kills.total() < kills)


if __name__ == "__main__":
    main()
