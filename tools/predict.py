"""Draw a model's detections on images, and write them as JSON."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from longshot.detector.inference import Prediction

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def main() -> None:
    arguments = _arguments()
    from PIL import Image

    from longshot.datasets import DataError
    from longshot.datasets.images.reading import read_image
    from longshot.detector.errors import readable_errors
    from longshot.detector.inference import load_model, predict
    from longshot.detector.system.environment import progress_bar

    with readable_errors():
        paths = find_images(arguments.images)
        model = load_model(arguments.checkpoint, device=arguments.device, score_threshold=arguments.score_threshold)
        arguments.out.mkdir(parents=True, exist_ok=True)
        records, unreadable = [], []
        for number, path in enumerate(progress_bar(paths, desc="predict", unit="image")):
            try:
                image = read_image(path)
            except DataError as error:  # one bad file must not cost the detections in all others
                unreadable.append(str(error))
                continue
            (found,) = predict(model, [image])
            records += to_records(path, found)
            # Numbered, since images of one name may come from several folders.
            Image.fromarray(draw(image, found)).save(arguments.out / f"{number:04d}_{path.stem}.png")
        written = arguments.out / "detections.json"
        written.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
        read = len(paths) - len(unreadable)
        print(f"{len(records)} detections in {read} images: {written}, pictures beside it")
        if unreadable:
            raise DataError(f"{len(unreadable)} of {len(paths)} images were left out: {'; '.join(unreadable[:5])}")


def find_images(paths: list[Path]) -> list[Path]:
    """The image files among `paths` and directly in the folders among them, sorted within a folder.

    Raises DataError for a path that is not there and if there is no image at all.
    """
    from longshot.datasets import DataError

    found = []
    for path in paths:
        if not path.exists():
            raise DataError(f"{path}: no such file or folder")
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES) if path.is_dir() else [path]
        found += inside
    if not found:
        raise DataError(f"{', '.join(map(str, paths))}: no image ({', '.join(sorted(IMAGE_SUFFIXES))}) in there")
    return found


def draw(image: "np.ndarray", found: "Prediction") -> "np.ndarray":
    """The (H, W, 3) uint8 image with its detections."""
    from longshot.detector.pictures.drawing import draw_boxes

    captions = [f"{name} {score:.2f}" for name, score in zip(found.class_names, found.scores, strict=True)]
    return draw_boxes(image, found.boxes[::-1], found.labels[::-1], captions[::-1])  # the best on top


def to_records(path: Path, found: "Prediction") -> list[dict]:
    """Detections as in COCO results, with the file and class named in place of an image id."""
    import numpy as np

    x1, y1, x2, y2 = found.boxes.astype(float).T
    boxes = np.stack((x1, y1, x2 - x1, y2 - y1), axis=1).tolist()
    rows = zip(found.category_ids.tolist(), found.class_names, boxes, found.scores.astype(float).tolist(), strict=True)
    return [
        {"file": str(path), "category_id": category, "class": name, "bbox": box, "score": score}
        for category, name, box, score in rows
    ]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: longshot predict --checkpoint runs/mine/checkpoints/best.pt --out drawn photos/ cat.jpg",
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint of a training run")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures and detections.json")
    parser.add_argument(
        "--score-threshold", type=_fraction, default=0.3, help="draw and write detections with scores above it (0.3)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cpu (default) or cuda")
    parser.add_argument("images", nargs="+", type=Path, help="image files, or folders of them")
    return parser.parse_args()


def _fraction(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, found {text}")
    return number


if __name__ == "__main__":
    main()
