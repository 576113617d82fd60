"""The class hierarchy of Open Images: which classes a label implies."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError


def read_ancestors(path: Path, label_names: Mapping[str, int]) -> NDArray[np.bool_]:
    """(K, K) whether the class of the column lies above the class of the row, as `Subcategory` says.

    The root ("Entity") is no class. A class may be in several places: what is above any of them is above it. Classes of
    the hierarchy that are not in `label_names` do not matter.

    Args:
        label_names: the label of each LabelName, such as /m/01lrl.

    Raises:
        DataError: the file is no hierarchy, or classes are missing in it.
    """
    try:
        root = json.loads(path.read_bytes())
        pairs = [(name, above) for child in root["Subcategory"] for name, above in _classes(child, ())]
    except OSError as error:
        raise DataError(f"{path}: cannot read the hierarchy: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path}: not a class hierarchy of Open Images ({type(error).__name__}: {error}); expected JSON of nested "
            "objects with 'LabelName' and 'Subcategory', such as challenge-2019-label500-hierarchy.json"
        ) from error
    missing = label_names.keys() - {name for name, _ in pairs}
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of {len(label_names)} classes are not in the hierarchy, for example "
            f"{min(missing)}; is it the hierarchy of other classes?"
        )
    ancestors = np.zeros((len(label_names), len(label_names)), bool)
    for name, above in pairs:
        if name in label_names:
            ancestors[label_names[name], [label_names[a] for a in above if a in label_names]] = True
    np.fill_diagonal(ancestors, False)
    return ancestors


def expand(labels: NDArray, implied: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What labels imply, themselves included.

    Args:
        labels: (T,) in [0, K).
        implied: (K, K) whether the row's class implies the column's.

    Returns:
        Indices into `labels`, rising, and at each the label or one that it implies.
    """
    rows, columns = np.nonzero(implied | np.eye(len(implied), dtype=bool))
    first = np.searchsorted(rows, np.arange(len(implied) + 1))
    counts = np.diff(first)[labels]
    index = np.repeat(np.arange(len(labels)), counts)
    place = np.arange(len(index)) - np.repeat(np.cumsum(counts) - counts, counts)
    return index, columns[first[labels[index]] + place]


def _classes(node: Mapping[str, Any], above: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """A class and all below it, each with the classes above it."""
    yield node["LabelName"], above
    for child in node.get("Subcategory", ()):
        yield from _classes(child, (*above, node["LabelName"]))
