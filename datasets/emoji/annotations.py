"""The annotation files of the emoji dataset: LVIS v1's format, with all of its fields that evaluation and training use."""

from collections.abc import Sequence

import numpy as np

from .drawing import SceneObjects
from .glyphs import Glyph
from .plan import PlannedImage

LICENSE_TEXT = """\
The images in this folder were drawn with glyphs of OpenMoji, the open-source emoji and icon project.
OpenMoji (https://openmoji.org) is licensed under CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/).
The glyphs were scaled, rotated, flipped, recolored and pasted onto generated backgrounds.
These images and their annotations are licensed under CC BY-SA 4.0 as well.
"""
_LICENSE = {"id": 1, "name": "CC BY-SA 4.0", "url": "https://creativecommons.org/licenses/by-sa/4.0/"}
_DESCRIPTION = (
    "Emoji in clutter with the long tail of LVIS v1. Glyphs: OpenMoji (https://openmoji.org), CC BY-SA 4.0. "
    "A box is tight around the visible part of a glyph, area counts its visible pixels, segmentation outlines the box."
)


def image_name(split: str, index: int) -> str:
    """The file of a split's image, relative to the folder `images`."""
    return f"{split}/{index + 1:06d}.jpg"


def category_records(glyphs: Sequence[Glyph], train: Sequence[PlannedImage], *, rare: int, common: int) -> list[dict]:
    """One LVIS category per glyph, ids from 1, with the frequency and counts of the training images."""
    num_categories = len(glyphs)
    image_counts, instance_counts = np.zeros((2, num_categories), np.int64)
    for image in train:
        instances = np.bincount(image.labels, minlength=num_categories)
        instance_counts += instances
        image_counts += instances > 0
    return [
        {
            "id": label + 1,
            "name": glyph.name,
            "synset": f"{glyph.name}.n.01",
            "synonyms": [glyph.name],
            "def": f"the emoji U+{glyph.codepoint:04X}",
            "frequency": "r" if image_count <= rare else "c" if image_count <= common else "f",
            "image_count": image_count,
            "instance_count": instance_count,
        }
        for label, (glyph, image_count, instance_count) in enumerate(
            zip(glyphs, image_counts.tolist(), instance_counts.tolist(), strict=True)
        )
    ]


def annotation_file(
    split: str,
    plan: Sequence[PlannedImage],
    drawn: Sequence[SceneObjects],
    *,
    categories: list[dict],
    image_size: tuple[int, int],
    info: dict,
) -> dict:
    """The content of a split's JSON file.

    Args:
        drawn: for each planned image its objects: those of `labels`, then those of `hidden`.
        info: goes into the file's `info`, after its description.
    """
    images, annotations = [], []
    for index, (planned, objects) in enumerate(zip(plan, drawn, strict=True)):
        images.append(
            {
                "id": index + 1,
                "file_name": image_name(split, index),
                "height": image_size[0],
                "width": image_size[1],
                "license": _LICENSE["id"],
                "neg_category_ids": (planned.absent + 1).tolist(),
                "not_exhaustive_category_ids": (np.intersect1d(planned.labels, planned.hidden) + 1).tolist(),
            }
        )
        boxes, areas = objects.boxes_xywh.tolist(), objects.areas.tolist()
        # Stops after the labels: what follows in boxes and areas are the hidden objects.
        for label, (x, y, w, h), area in zip(planned.labels.tolist(), boxes, areas, strict=False):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": label + 1,
                    "bbox": [x, y, w, h],
                    "area": area,
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )
    return {
        "info": {"description": _DESCRIPTION, **info},
        "licenses": [_LICENSE],
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }
