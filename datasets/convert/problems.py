"""Everything that is wrong with what a converter reads: counted, and the first few told with file and line."""

from pathlib import Path

from ..errors import DataError

_TOLD = 5


class Problems:
    """Collects what cannot be converted, so that a user sees more than the first slip of a large dataset."""

    def __init__(self) -> None:
        self.count = 0
        self._first: list[str] = []

    def add(self, path: Path, line: int | None, what: str) -> None:
        """Note that a line of a file, or the whole file, is not as it must be."""
        self.count += 1
        if len(self._first) < _TOLD:
            self._first.append(f"{path}{'' if line is None else f':{line}'}: {what}")

    def check(self) -> None:
        """Raise DataError if anything was noted."""
        if self.count:
            more = f"; … {self.count} problems in all" if self.count > len(self._first) else ""
            raise DataError(f"{'; '.join(self._first)}{more}. Nothing was written: correct the input and convert again")
