"""Pages that show where a detector is wrong, and how several compare."""

from .comparison import write_comparison
from .report import write_report
from .validation_set import ValidationSet

__all__ = ["ValidationSet", "write_comparison", "write_report"]
