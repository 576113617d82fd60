"""Evaluate a checkpoint's model, or score saved detections: print the table of AP, write a report, compare runs."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from longshot.tools.arguments import add_config

_USAGE = """
  %(prog)s --config FILE --checkpoint PATH [--detections FILE] [--fixed-ap] [--out FILE] [--report DIR]
           [section.key=value ...]
  %(prog)s --annotations FILE --results FILE [--train-annotations FILE] [--protocol lvis|coco|open_images] [--fixed-ap] [--official]
           [--out FILE] [--report DIR [--images DIR]]
  %(prog)s --annotations FILE --compare FILE FILE ... --report DIR [--train-annotations FILE] [--protocol lvis|coco]"""


def main() -> None:
    arguments = _arguments()
    from longshot.detector.errors import readable_errors

    with readable_errors():
        for path in filter(None, (arguments.out, arguments.detections)):
            path.parent.mkdir(parents=True, exist_ok=True)  # before the work: failing here after it would cost hours
        if arguments.report:
            arguments.report.mkdir(parents=True, exist_ok=True)
        if arguments.compare:
            _compare(arguments)
        elif arguments.results:
            _score_saved(arguments)
        else:
            _score_model(arguments)


def _compare(arguments: argparse.Namespace) -> None:
    from longshot.detector.scoring import compare_saved

    page = compare_saved(
        arguments.annotations,
        arguments.compare,
        arguments.report,
        protocol=arguments.protocol or "auto",
        train_annotations=arguments.train_annotations,
    )
    print(f"comparison: {page}")


def _score_saved(arguments: argparse.Namespace) -> None:
    from longshot.detector.evaluation.metrics import table
    from longshot.detector.evaluation.open_images_metrics import open_images_table
    from longshot.detector.results.files import read_results
    from longshot.detector.scoring import read_validation_set, report_saved, score_open_images, score_saved

    if arguments.protocol == "open_images":
        result = score_open_images(
            arguments.annotations, arguments.results, train_annotations=arguments.train_annotations
        )
        _show(result, arguments.out, open_images_table)
        return
    validation = read_validation_set(
        arguments.annotations, protocol=arguments.protocol or "auto", train_annotations=arguments.train_annotations
    )
    detections = read_results(arguments.results, **validation.ids)
    scored = score_saved(validation, detections, with_fixed_ap=arguments.fixed_ap)
    if arguments.official:
        from longshot.tools.checks.official import compare

        ids = {name: validation.ids[name] for name in ("image_ids", "category_ids")}
        scored.result["official"] = compare(
            arguments.annotations, detections, scored, ids=ids, classes=validation.classes
        )
    _show(scored.result, arguments.out, table)
    if arguments.report:
        page = report_saved(validation, detections, arguments.results, arguments.report, images=arguments.images)
        print(f"report: {page}")


def _score_model(arguments: argparse.Namespace) -> None:
    from longshot.detector.config.schema import load_config
    from longshot.detector.evaluation.metrics import table
    from longshot.detector.report.checkpoints import report_checkpoint, score_checkpoint
    from longshot.detector.system.distributed import process_group

    config, detections = load_config(arguments.config, arguments.overrides), arguments.detections
    if arguments.report and not detections:
        detections = arguments.report / "detections.npz"
    options = {"detections_path": detections, "with_fixed_ap": arguments.fixed_ap}
    with process_group(config.device) as process:
        result = score_checkpoint(config, arguments.checkpoint, process, **options)
    if result is None:  # not rank 0
        return
    _show(result, arguments.out, table)
    if arguments.report:
        print(f"report: {report_checkpoint(config, arguments.checkpoint, detections, arguments.report)}")


def _show(result: dict, out: Path | None, table: Callable[[dict], str]) -> None:
    print(table(result))
    if "official" in result:
        from longshot.tools.checks.official import differences_line

        print(differences_line(result["official"]))
    if out:
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(usage=_USAGE, description=__doc__)
    model = parser.add_argument_group("evaluate a checkpoint's model on the validation set of a configuration")
    add_config(model, required=False)
    model.add_argument("--checkpoint", type=Path, metavar="PATH", help="checkpoint of a training run")
    model.add_argument(
        "--detections", type=Path, metavar="FILE", help="keep the detections here, as .npz or COCO results .json"
    )
    model.add_argument("overrides", nargs="*", metavar="section.key=value", help="for instance eval.protocol=coco")
    saved = parser.add_argument_group("score saved detections")
    saved.add_argument("--annotations", type=Path, metavar="FILE", help="ground truth, COCO or LVIS JSON")
    saved.add_argument(
        "--results", type=Path, metavar="FILE", help="detections, .npz of --detections or COCO results JSON"
    )
    saved.add_argument(
        "--compare", type=Path, metavar="FILE", nargs="+",
        help="compare files of detections, all with the first, with bootstrap intervals; writes compare.html to --report",
    )  # fmt: skip
    saved.add_argument("--images", type=Path, metavar="DIR", help="folder of the images, for pictures in the report")
    saved.add_argument(
        "--train-annotations", type=Path, metavar="FILE",
        help="training set to take r/c/f from: as it states them, or up to 10, up to 100, and more training images",
    )  # fmt: skip
    saved.add_argument(
        "--protocol", choices=("auto", "lvis", "coco", "open_images"), help="auto (default): as the annotations are"
    )
    saved.add_argument(
        "--official", action="store_true",
        help="also score with the package lvis or pycocotools, and print the largest difference (for hundreds of images)",
    )  # fmt: skip
    parser.add_argument(
        "--fixed-ap", action="store_true",
        help="also the AP of the 10000 best detections of each class, with no limit per image (Dave et al. 2021)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result here as JSON")
    parser.add_argument(
        "--report", type=Path, metavar="DIR",
        help="write report.html here: curves, errors, calibration, the worst mistakes, all classes; also as CSV and JSON",
    )  # fmt: skip
    arguments = parser.parse_intermixed_args()
    _check_mode(parser, arguments)
    return arguments


def _check_mode(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    """End with a usage error unless the arguments are those of one mode, and complete."""
    model = {"--config": given.config, "--checkpoint": given.checkpoint}
    saved = {"--annotations": given.annotations, "--results": given.results}
    if given.compare:
        saved = {"--annotations": given.annotations, "--compare": given.compare, "--report": given.report}
    of_model = model | {"--detections": given.detections, "section.key=value": given.overrides}
    of_saved = saved | {"--train-annotations": given.train_annotations, "--protocol": given.protocol}
    of_saved |= {"--official": given.official, "--compare": given.compare, "--images": given.images}
    of_saved.pop("--report", None)
    for_model, for_saved = ([name for name, value in mode.items() if value] for mode in (of_model, of_saved))
    if for_model and for_saved:
        parser.error(f"{', '.join(for_saved)} cannot be used together with {', '.join(for_model)}")
    if not for_model and not for_saved:
        parser.error("give --config and --checkpoint, or --annotations and --results or --compare")
    missing = [name for name, value in (model if for_model else saved).items() if not value]
    if missing:
        parser.error(f"{' '.join(for_model or for_saved)}: needs {' and '.join(missing)} too")
    if given.images and not given.report:
        parser.error("--images: needs --report too")
    if given.compare:
        _check_comparison(parser, given)
    if given.protocol == "open_images":
        others = {"--report": given.report, "--compare": given.compare, "--official": given.official}
        others |= {"--fixed-ap": given.fixed_ap, "--images": given.images}
        if unfit := [name for name, value in others.items() if value]:
            parser.error(f"--protocol open_images has no {', '.join(unfit)}; leave it out")
    for option in ("out", "detections"):
        path = getattr(given, option)
        if path and path.is_dir():
            parser.error(f"--{option}: {path} is a folder; name a file")


def _check_comparison(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    alone = {"--results": given.results, "--images": given.images, "--official": given.official}
    alone |= {"--fixed-ap": given.fixed_ap, "--out": given.out}
    others = [name for name, value in alone.items() if value]
    if others:
        parser.error(f"--compare cannot be used together with {', '.join(others)}")
    if len(set(given.compare)) < max(2, len(given.compare)):
        parser.error("--compare: name two files or more, each once")


if __name__ == "__main__":
    main()
