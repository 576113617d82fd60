"""Everything that is wrong with a dataset, in one pass."""

from pathlib import Path
from typing import NamedTuple

from .boxes import check_boxes
from .classes import check_classes, check_lvis, is_lvis
from .findings import Finding, table, verdict
from .images import Progress, check_images, default_workers
from .reading import read_loosely
from .records import Records, check_fields, check_ids, check_references
from .splits import check_splits

__all__ = ["Checked", "Finding", "SplitFiles", "check_dataset", "default_workers", "table", "verdict"]


class SplitFiles(NamedTuple):
    """Where a split is."""

    annotations: Path  # COCO or LVIS JSON
    images: Path | None  # the folder which its file names are relative to; None: images are not looked for


class Checked(NamedTuple):
    """What was looked at, in lines, and what was found."""

    summary: list[str]
    findings: list[Finding]


def check_dataset(
    train: SplitFiles,
    val: SplitFiles | None = None,
    *,
    read_images: bool = True,
    workers: int | None = None,
    progress: Progress = lambda iterable, length: iterable,
) -> Checked:
    """All findings of a dataset. Nothing that is wrong with its files ends the check or hides something else.

    Args:
        val: a set to be checked too, and against the training set.
        read_images: decode every image; False only looks whether they are there.
        workers: processes that read images; none: one for each processor.
        progress: shows how far reading images is, given an iterable and its length.
    """
    files = {"train": train} | ({"val": val} if val else {})
    summary, findings, splits = [], [], {}
    for split, (annotations, _) in files.items():
        content, problems = read_loosely(annotations, split)
        findings += problems
        if content is None:
            summary.append(f"{split}: {annotations}, not read")
            continue
        records = splits[split] = Records.of(split, content)
        summary.append(_summary(records, files[split], read_images))
        findings += _check_annotations(records)
    if len(splits) == 2:
        findings += check_splits(*splits.values(), train_images=train.images, val_images=val.images)
    findings += check_images(
        [(records, folder) for split, records in splits.items() if (folder := files[split].images)],
        read=read_images, workers=workers or default_workers(), progress=progress,
    )  # fmt: skip
    return Checked(summary, findings)


def _check_annotations(records: Records) -> list[Finding]:
    return [
        *check_fields(records),
        *check_ids(records),
        *check_references(records),
        *check_boxes(records),
        *check_classes(records, train=records.split == "train"),
        *check_lvis(records),
    ]


def _summary(records: Records, files: SplitFiles, read_images: bool) -> str:
    content, kind = records.content, "LVIS" if is_lvis(records) else "COCO"
    counts = f"{len(content.images):,} images, {len(records.owners):,} annotations, {len(content.categories):,} classes"
    looked_for = f"images in {files.images}{'' if read_images else ', not decoded'}"
    return f"{records.split}: {counts} ({files.annotations}, {kind}); {looked_for if files.images else 'images not looked at'}"
