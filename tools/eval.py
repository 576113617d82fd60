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
  eval.py --config FILE --checkpoint PATH [--detections FILE] [--out FILE] [section.key=value ...]
  eval.py --annotations FILE --results FILE [--train-annotations FILE] [--protocol lvis|coco] [--out FILE]"""


def main() -> None:
    arguments = _arguments()
    with readable_errors():
        # Before the work, not after it: a path that cannot be written would cost hours.
        for path in filter(None, (arguments.out, arguments.detections)):
            _prepare(path)
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


def _prepare(path: Path) -> None:
    """Make the folder of a file that is to be written, and see that it can be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.open("ab").close()


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
    mistake = _mode_mistake(arguments)
    if mistake:
        parser.error(mistake)
    return arguments


def _mode_mistake(arguments: argparse.Namespace) -> str | None:
    """What is wrong with the choice between the two modes."""
    model = {"--config": arguments.config, "--checkpoint": arguments.checkpoint}
    saved = {"--annotations": arguments.annotations, "--results": arguments.results}
    with_model = model | {"--detections": arguments.detections, "section.key=value": arguments.overrides}
    with_saved = saved | {"--train-annotations": arguments.train_annotations, "--protocol": arguments.protocol}
    of_model, of_saved = ([name for name, value in m.items() if value] for m in (with_model, with_saved))
    if of_model and of_saved:
        return f"{', '.join(of_model)} and {', '.join(of_saved)} belong to different modes, see above"
    needed = [model, saved] if not of_model and not of_saved else [model] if of_model else [saved]
    if not any(all(mode.values()) for mode in needed):
        return " or ".join(", ".join(name for name, value in mode.items() if not value) for mode in needed) + " missing"
    return None


if __name__ == "__main__":
    main()
