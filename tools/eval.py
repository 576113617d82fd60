"""Evaluate a checkpoint's model, or score saved detections, and print the table of AP."""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # ours before installed packages called datasets, losses

from detector.config import load_config
from detector.distributed import process_group
from detector.errors import readable_errors
from detector.evaluation import table
from detector.scoring import score_checkpoint, score_file

_USAGE = """
  %(prog)s --config FILE --checkpoint PATH [--detections FILE] [--out FILE] [section.key=value ...]
  %(prog)s --annotations FILE --results FILE [--train-annotations FILE] [--protocol lvis|coco] [--out FILE]"""


def main() -> None:
    arguments = _arguments()
    with readable_errors():
        for path in filter(None, (arguments.out, arguments.detections)):
            path.parent.mkdir(parents=True, exist_ok=True)  # before the work: failing here after it would cost hours
        result = _score_saved(arguments) if arguments.results else _score_model(arguments)
        if result is None:  # not rank 0
            return
        print(table(result))
        if arguments.out:
            arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _score_saved(arguments: argparse.Namespace) -> dict:
    return score_file(
        arguments.annotations,
        arguments.results,
        protocol=arguments.protocol or "auto",
        train_annotations=arguments.train_annotations,
    )


def _score_model(arguments: argparse.Namespace) -> dict | None:
    config = load_config(arguments.config, arguments.overrides)
    with process_group(config.device) as process:
        return score_checkpoint(config, arguments.checkpoint, process, detections_path=arguments.detections)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(usage=_USAGE, description=__doc__)
    model = parser.add_argument_group("evaluate a checkpoint's model on the validation set of a configuration")
    model.add_argument("--config", type=Path, metavar="FILE", help="YAML file")
    model.add_argument("--checkpoint", type=Path, metavar="PATH", help="checkpoint of a training run")
    model.add_argument("--detections", type=Path, metavar="FILE", help="write the detections here as COCO results JSON")
    model.add_argument("overrides", nargs="*", metavar="section.key=value", help="for instance eval.protocol=coco")
    saved = parser.add_argument_group("score saved detections")
    saved.add_argument("--annotations", type=Path, metavar="FILE", help="ground truth, COCO or LVIS JSON")
    saved.add_argument("--results", type=Path, metavar="FILE", help="detections, COCO results JSON")
    saved.add_argument(
        "--train-annotations", type=Path, metavar="FILE",
        help="training set to take r/c/f from: as it states them, or up to 10, up to 100, and more training images",
    )  # fmt: skip
    saved.add_argument("--protocol", choices=("auto", "lvis", "coco"), help="auto (default): as the annotations are")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result here as JSON")
    arguments = parser.parse_intermixed_args()
    _check_mode(parser, arguments)
    return arguments


def _check_mode(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    """End with a usage error unless the arguments are those of one mode, and complete."""
    model = {"--config": given.config, "--checkpoint": given.checkpoint}
    saved = {"--annotations": given.annotations, "--results": given.results}
    of_model = model | {"--detections": given.detections, "section.key=value": given.overrides}
    of_saved = saved | {"--train-annotations": given.train_annotations, "--protocol": given.protocol}
    for_model, for_saved = ([name for name, value in mode.items() if value] for mode in (of_model, of_saved))
    if for_model and for_saved:
        parser.error(f"{', '.join(for_saved)} cannot be used together with {', '.join(for_model)}")
    if not for_model and not for_saved:
        parser.error("give --config and --checkpoint, or --annotations and --results")
    missing = [name for name, value in (model if for_model else saved).items() if not value]
    if missing:
        parser.error(f"{' '.join(for_model or for_saved)}: needs {' and '.join(missing)} too")
    for option in ("out", "detections"):
        path = getattr(given, option)
        if path and path.is_dir():
            parser.error(f"--{option}: {path} is a folder; name a file")


if __name__ == "__main__":
    main()
