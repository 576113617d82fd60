"""Train a detector from a configuration file and print its AP table; alone, or on many GPUs under torchrun."""

import argparse
import sys

from longshot.detector.system.stopping import STOPPED


def main() -> None:
    arguments = _arguments()
    from longshot.detector.config.schema import load_config
    from longshot.detector.errors import readable_errors
    from longshot.detector.run.loop import train
    from longshot.detector.system.distributed import elastic_job, process_group

    with readable_errors():
        config = load_config(arguments.config, arguments.overrides)
        with process_group(config.device) as process:
            complete = train(config, process, arguments.resume)
    if not complete and elastic_job() is None:
        sys.exit(STOPPED)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: longshot train --config quickstart. SIGTERM and SIGUSR1 save and stop, with exit code "
        f"{STOPPED} (under torchrun: 0, and preempted.json in the run folder); the same command then goes on.",
    )
    parser.add_argument(
        "--config", required=True, metavar="FILE", help="YAML file, or a packaged one such as quickstart"
    )
    parser.add_argument(
        "--resume", metavar="auto|PATH", help="go on from the run folder's newest checkpoint, or from PATH"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="for instance optimizer.lr=0.02")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    main()
