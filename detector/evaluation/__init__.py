"""Scoring of detections, without the official packages and with their numbers."""

from ..errors import ResultsError
from ..results.columns import DetectionColumns
from ..results.files import read_results, write_results
from .columnar import ColumnarEvaluator
from .ground_truth import COCO, LVIS, PROTOCOLS, GroundTruth, Protocol, choose_protocol
from .metrics import summarize, summarize_fixed_ap, table

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
    "summarize_fixed_ap",
    "table",
    "write_results",
]
