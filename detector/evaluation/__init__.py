"""Scoring of detections, without the official packages and with their numbers."""

from .columnar import ColumnarEvaluator
from .ground_truth import COCO, LVIS, PROTOCOLS, GroundTruth, Protocol, choose_protocol
from .metrics import summarize, table
from .results import DetectionColumns, ResultsError, read_results, write_results

__all__ = [
    "COCO",
    "LVIS",
    "PROTOCOLS",
    "ColumnarEvaluator",
    "DetectionColumns",
    "GroundTruth",
    "Protocol",
    "ResultsError",
    "choose_protocol",
    "read_results",
    "summarize",
    "table",
    "write_results",
]
