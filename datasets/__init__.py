"""Detection datasets: COCO and LVIS annotation files, images, sampling, batches; and one that is drawn from emoji."""

from .annotations.annotations import Annotations, read_annotations
from .errors import DataError

__all__ = ["Annotations", "DataError", "read_annotations"]
