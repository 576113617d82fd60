"""Texts as two arrays: a Python object per file name would be copied into every worker process."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray


class Texts(Sequence[str]):
    """Texts one after the other in an array of bytes."""

    def __init__(self, content: NDArray[np.uint8], offsets: NDArray[np.int64]):
        self.content, self.offsets = content, offsets  # UTF-8 of all; text i is content[offsets[i] : offsets[i + 1]]

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Texts":
        """The texts as columns."""
        # JSON can hold half of a surrogate pair, which strict UTF-8 cannot.
        encoded = [text.encode(errors="surrogatepass") for text in texts]
        offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        start = range(len(self))[index]  # negative ones count from the end, and those beyond it are an IndexError
        content = self.content[self.offsets[start] : self.offsets[start + 1]]
        return content.tobytes().decode(errors="surrogatepass")
