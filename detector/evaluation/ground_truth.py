"""What detections are compared with: the objects of a dataset, seen through the rules of COCO or of LVIS."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...datasets.annotations.annotations import Annotations, DataError

# Object area in pixels² (S, 2), both ends included: all, small, medium, large.
SIZE_RANGES = np.array([[0, 1e5**2], [0, 32**2], [32**2, 96**2], [96**2, 1e5**2]])

# AP of rare classes lives on detections with low scores.
_LVIS_SCORE_THRESHOLD = 1e-3


class Protocol(NamedTuple):
    """The rules of a benchmark."""

    name: str
    federated: bool  # an image is only judged on classes known to be present or absent in it
    per_image: int | None  # detections of an image that count, over all classes
    limits: tuple[int, ...]  # rising: detections that count per class and image, each giving numbers of its own
    per_class: int | None = None  # detections of a class that count, over all images

    def caveats(self, *, score_threshold: float, detections_per_image: int) -> list[str]:
        """What keeps the numbers of detections that are chosen so from being comparable with those of others."""
        if self.per_image is None or (
            score_threshold <= _LVIS_SCORE_THRESHOLD and detections_per_image >= self.per_image
        ):
            return []
        return [
            f"test.score_threshold is {score_threshold:g} and test.detections_per_image {detections_per_image}; LVIS numbers "
            f"are comparable only with at most {_LVIS_SCORE_THRESHOLD:g} and at least {self.per_image}"
        ]


# With 300 an image there cannot be more of a class: the limit per class then cuts nothing.
LVIS = Protocol("lvis", federated=True, per_image=300, limits=(300,))
COCO = Protocol("coco", federated=False, per_image=None, limits=(1, 10, 100))
PROTOCOLS = {protocol.name: protocol for protocol in (LVIS, COCO)}


class GroundTruth(NamedTuple):
    """The objects that a protocol looks at, sorted by cell (image_index * num_classes + label), else in file order."""

    protocol: Protocol
    num_images: int
    num_classes: int
    cell: NDArray[np.int64]  # (G,)
    boxes_xywh: NDArray[np.float64]  # (G, 4)
    crowd: NDArray[np.bool_]  # (G,) any number of detections may take it, each for its part inside
    ignored: NDArray[np.bool_]  # (G, S) finding it is neither right nor wrong
    verified_cells: NDArray[np.int64]  # sorted; other cells are not judged (federated only)
    not_exhaustive_cells: NDArray[np.int64]  # sorted; objects are missing there: detections too many are no errors

    @classmethod
    def from_arrays(
        cls,
        protocol: Protocol,
        *,
        num_images: int,
        num_classes: int,
        image_index: ArrayLike,
        labels: ArrayLike,
        boxes_xywh: ArrayLike,
        areas: ArrayLike,
        crowd: ArrayLike,
        ignore: ArrayLike,
        negative_cells: ArrayLike = (),
        not_exhaustive_cells: ArrayLike = (),
    ) -> "GroundTruth":
        """Objects as `protocol` sees them.

        Args:
            image_index: (G,) in [0, N), by rising image id, since equal scores rank in this order; else in file order.
            labels, boxes_xywh, crowd, ignore: (G,) in [0, K), (G, 4) pixels, (G,) and (G,) bool.
            areas: (G,) the file's `area`, which the size ranges go by (of the mask, where there was one).
            negative_cells, not_exhaustive_cells: image_index * num_classes + label of LVIS's lists, in any order.
        """
        cell = np.asarray(image_index, np.int64) * num_classes + np.asarray(labels, np.int64)
        areas, crowd, ignore = np.asarray(areas, np.float64), np.asarray(crowd, bool), np.asarray(ignore, bool)
        if protocol.federated:  # `lvis` drops objects without area, and knows no crowd
            kept, crowd = np.flatnonzero(areas > 0), np.zeros_like(crowd)
        else:  # `pycocotools` overwrites `ignore` with `iscrowd`, and knows no lists
            kept, ignore, negative_cells, not_exhaustive_cells = np.arange(len(cell)), crowd, (), ()
        kept = kept[np.argsort(cell[kept], kind="stable")]
        dataset = (protocol, num_images, num_classes)
        return cls(
            *dataset,
            cell=cell[kept],
            boxes_xywh=np.asarray(boxes_xywh, np.float64).reshape(-1, 4)[kept],
            crowd=crowd[kept],
            ignored=ignore[kept, None] | out_of_range(areas[kept]),
            verified_cells=np.union1d(cell[kept], np.asarray(negative_cells, np.int64)),
            not_exhaustive_cells=np.unique(np.asarray(not_exhaustive_cells, np.int64)),
        )

    @classmethod
    def from_annotations(cls, annotations: Annotations, protocol: Protocol) -> "GroundTruth":
        """The objects of a COCO or LVIS file as `protocol` sees them.

        Raises DataError if a federated protocol is asked of a file that does not say which classes are absent.
        """
        _check_lists(annotations, protocol)
        num_images, num_classes = len(annotations.image_ids), len(annotations.category_ids)

        def image_index(offsets: NDArray) -> NDArray[np.int64]:
            return np.repeat(np.arange(num_images), np.diff(offsets))

        negative = image_index(annotations.negative_offsets) * num_classes + annotations.negative_labels
        not_exhaustive = image_index(annotations.not_exhaustive_offsets) * num_classes
        return cls.from_arrays(
            protocol,
            num_images=num_images,
            num_classes=num_classes,
            image_index=image_index(annotations.offsets),
            labels=annotations.labels,
            boxes_xywh=annotations.boxes_xywh,
            areas=annotations.areas,
            crowd=annotations.crowd,
            ignore=annotations.ignore,
            negative_cells=negative,
            not_exhaustive_cells=not_exhaustive + annotations.not_exhaustive_labels,
        )

    def with_fixed_ap_rules(self, *, detections_per_class: int = 10_000) -> "GroundTruth":
        """The same objects, by the rules of "Fixed AP" (Dave et al. 2021, arXiv:2102.01066).

        A limit per image lets the classes compete for places, so that a class gains when others are scored lower. Fixed
        AP limits each class by itself: its best detections of all images count, however many are in one image. Those which
        federated annotation leaves unjudged are among them. Equal scores rank by image, then as within the image.
        """
        limit = detections_per_class
        return self._replace(protocol=self.protocol._replace(per_image=None, limits=(limit,), per_class=limit))

    @property
    def num_objects(self) -> NDArray[np.int64]:
        """(K, S) objects that count."""
        counted = np.zeros((self.num_classes, len(SIZE_RANGES)), np.int64)
        np.add.at(counted, self.cell % self.num_classes, ~self.ignored)
        return counted


def out_of_range(areas: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(G,) areas -> (G, S), True where an area lies outside of a size range."""
    return (areas[:, None] < SIZE_RANGES[:, 0]) | (areas[:, None] > SIZE_RANGES[:, 1])


def choose_protocol(name: str, annotations: Annotations) -> Protocol:
    """The protocol called "lvis" or "coco"; for "auto" that of the file: lvis if it has LVIS's lists.

    Raises DataError if a federated protocol is asked of a file that does not say which classes are absent.
    """
    protocol = PROTOCOLS[name if name != "auto" else "lvis" if annotations.is_lvis else "coco"]
    _check_lists(annotations, protocol)
    return protocol


def _check_lists(annotations: Annotations, protocol: Protocol) -> None:
    if protocol.federated and not annotations.is_lvis:
        raise DataError(
            f"{annotations.path}: the {protocol.name} protocol needs 'neg_category_ids' in the images, and no image has "
            "them; use the coco protocol"
        )
