"""Warnings that batches bring with them."""

import logging
import sys
from collections.abc import Iterable, Iterator

from tqdm import tqdm

from ...datasets.loading.loader import Batch
from .distributed import Process

_log = logging.getLogger(__name__)


def told(batches: Iterable[Batch], process: Process) -> Iterator[Batch]:
    """The batches; each of their warnings is said once.

    Rank 0 says its own through Python's logging, which a run writes into its log. Others say theirs in the terminal: only
    they have them.
    """
    said: set[str] = set()
    for batch in batches:
        for warning in batch.warnings:
            if warning in said:
                continue
            said.add(warning)
            if process.rank == 0:
                _log.warning(warning)
            else:
                tqdm.write(f"process {process.rank}: warning: {warning}", file=sys.stderr)
        yield batch
