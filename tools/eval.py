"""Score saved detections: `python tools/eval.py --annotations GT.json --results DETECTIONS.json [--out FILE]`."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datasets.annotations import DataError, read_annotations
from detector.evaluation import (
    ColumnarEvaluator,
    GroundTruth,
    ResultsError,
    choose_protocol,
    read_results,
    summarize,
    table,
)


def main() -> None:
    args = _arguments()
    try:
        result = score_file(args.annotations, args.results, protocol=args.protocol)
    except (DataError, ResultsError) as error:
        raise SystemExit(f"error: {error}") from None
    print(table(result))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")


def score_file(annotations_path: Path, results_path: Path, *, protocol: str = "auto") -> dict[str, Any]:
    """The result (`summarize`) of a file of detections; `protocol` is "lvis", "coco" or "auto"."""
    annotations = read_annotations(annotations_path)
    ground_truth = GroundTruth.from_annotations(annotations, choose_protocol(protocol, annotations))
    evaluator = ColumnarEvaluator(ground_truth)
    evaluator.add(*read_results(results_path, image_ids=annotations.image_ids, category_ids=annotations.category_ids))
    return summarize(
        evaluator.accumulate(),
        ground_truth,
        category_ids=annotations.category_ids,
        class_names=annotations.class_names,
        frequencies=annotations.frequencies,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Score detections and print the table of AP.")
    parser.add_argument("--annotations", type=Path, required=True, help="ground truth, COCO or LVIS JSON")
    parser.add_argument("--results", type=Path, required=True, help="detections, COCO results JSON")
    parser.add_argument("--protocol", choices=("auto", "lvis", "coco"), default="auto", help="auto: as the file is")
    parser.add_argument("--out", type=Path, help="write the result here as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
