"""Workers that have died while they read images: whether to go on, and what to say of them."""

import signal
from collections import Counter

from ..errors import DataError
from .dataset import DetectionDataset
from .workers import Death, Watch

MOST_IN_A_ROW = 3  # deaths without a batch, or an image found to be deadly, in between; more are no accident
_ADVICE = {
    signal.SIGKILL: "most likely there was too little memory: lower data.workers, or give the machine more",
    signal.SIGBUS: "most likely /dev/shm is full: enlarge it (docker run --shm-size), or set data.workers=0",
}
_OTHER_ADVICE = "the file may crash its decoder: look at it, or replace it"


class Casualties:
    """What is done when a worker dies: an error, or, `tolerant`, a new one.

    An image that a second worker dies of is deadly, and then treated like one that cannot be decoded; of the first, it may
    have been want of memory.
    """

    def __init__(self, dataset: DetectionDataset, *, tolerant: bool):
        self._dataset, self._tolerant = dataset, tolerant
        self._died_of: Counter[int] = Counter()
        self._in_a_row = 0
        self._untold: list[str] = []

    def __call__(self, death: Death) -> frozenset[int]:
        """The images that are deadly. Raises DataError if that is all, RuntimeError if it was an error of ours."""
        if death.exit_code >= 0:
            raise RuntimeError(f"a process that reads images ended with exit code {death.exit_code}; see above for why")
        told, advice = self._tell(death), _ADVICE.get(-death.exit_code, _OTHER_ADVICE)
        if not self._tolerant:
            raise DataError(f"{told}; {advice}. With data.on_unreadable=replace another would go on from there")
        self._in_a_row += 1
        if death.item != Watch.NOTHING:
            self._died_of[death.item] += 1
            if self._died_of[death.item] > 1:
                self._in_a_row = 0
        if self._in_a_row > MOST_IN_A_ROW:
            raise DataError(f"{told}, the death number {self._in_a_row} in a row without a batch; {advice}")
        self._untold.append(f"{told}; another goes on from there")
        return frozenset(image for image, times in self._died_of.items() if times > 1)

    def since_the_last_batch(self) -> list[str]:
        """What to say of the deaths since this was asked; it is asked when a batch has been delivered."""
        self._in_a_row = 0
        told, self._untold = self._untold, []
        return told

    def _tell(self, death: Death) -> str:
        cause = signal.Signals(-death.exit_code).name
        while_reading = "no image"
        if death.item != Watch.NOTHING:
            while_reading = f"{self._dataset.path(death.item)} ({self._dataset.called(death.item)})"
        return f"process {death.pid}, which reads images, was ended by {cause} in batch {death.number}, reading {while_reading}"
