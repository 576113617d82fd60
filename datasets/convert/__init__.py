"""Annotations of other formats, written as COCO or LVIS JSON that `read_annotations` takes."""

from .open_images import convert_open_images
from .voc import convert_voc
from .yolo import convert_yolo

__all__ = ["convert_open_images", "convert_voc", "convert_yolo"]
