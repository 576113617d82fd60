"""Numbers and pages as files."""

import csv
import io
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..system.environment import environment
from .analysis import Row


def write_files(
    folder: Path, page: str, name: str, numbers: Mapping[str, Any], tables: Mapping[str, Sequence[Row]]
) -> Path:
    """Write NAME.html, NAME.json and a CSV file for each of the tables; returns the path of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(numbers | tables, indent=1) + "\n", encoding="utf-8")
    for table, rows in tables.items():
        (folder / f"{name}_{table}.csv").write_text(_csv(rows), encoding="utf-8")
    (folder / f"{name}.html").write_text(page, encoding="utf-8")
    return folder / f"{name}.html"


def versions() -> str:
    """What computed the numbers."""
    known = environment()
    commit = (
        f"commit {known['commit'][:10]}{' with changes' if known['uncommitted_changes'] else ''}, "
        if known["commit"]
        else ""
    )
    return f"Longshot {commit}Python {platform.python_version()}, NumPy {known['numpy']}, PyTorch {known['torch']}"


def _csv(rows: Sequence[Row]) -> str:
    file = io.StringIO(newline="")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()
