"""Progress bars that stay readable in a log file."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress_bar(iterable: Iterable | None = None, **options: Any) -> tqdm:
    """A tqdm bar; where nobody watches a terminal it prints a line every half minute instead of twice a second."""
    seconds = 0.5 if sys.stderr.isatty() else 30
    return tqdm(iterable, mininterval=seconds, maxinterval=seconds, dynamic_ncols=True, **options)
