"""What the pages say below their numbers."""

from collections.abc import Sequence

from .analysis import Row
from .bootstrap import COVERAGE
from .calibration import NUM_BINS
from .error_kinds import BACKGROUND_IOU
from .verdicts import IOU

SORTING = "A click on a head sorts."

CLASSES = f"""{SORTING} Best-F1 score: from this score on, the detections of the class have their best F1 at IoU
{IOU:g}, with this precision and recall; it was chosen on the images that it is reported on."""

ERRORS = f"""After TIDE (Bolya et al. 2020), at IoU {IOU:g} with background below {BACKGROUND_IOU:g}. In this order, a
false positive is a localization error if the nearest object of its class has an IoU between these; a classification
error if an object of another class has at least the upper one; a duplicate if an object of its class has, which a
better detection took; background if no object has the lower one; else both. Missed is an object that was not found
and on which no localization or classification error lies. The gain is that of AP50 if all errors of a kind were
fixed: errors of the first two kinds become right where their object was free and no better one lies on it, all others
go away; missed objects are no longer asked for (a class that has no other objects stays at 0). Detections which the
protocol does not judge are no errors: those of classes that were not checked in the image, unmatched ones of classes
known to be annotated incompletely there, and those on crowds. Above threshold: at or above the best-F1 score of the
detection's class, which the last table has."""

CONFUSIONS = f"""False positives of one class on an object of another (at IoU {IOU:g} or more; the object that they
overlap most), where the image was checked for the first class; the most frequent pairs. Above threshold: at or above
the best-F1 score of the detection's class."""

CALIBRATION = f"""The numbers are about the images that the temperature was not fitted on; a hash of its id decides to
which half an image belongs. D-ECE is the mean distance of score and precision (at IoU {IOU:g}) in {NUM_BINS} bins,
weighted by detections; the class mean averages the D-ECE of each class. Both look at judged detections only, that is
at classes which were checked in the image; "unchecked as wrong" is what D-ECE would be without regard to that."""

NO_PROBABILITIES = "There are scores outside of 0 to 1, which are no probabilities."

NO_IMAGES = "Not shown: the folder of images was not given."

DIFFERENCES = f"""In brackets: {COVERAGE:.0%} intervals of the bootstrap over images. Every run is scored on the same
resamples, so that the interval of a difference says more than the intervals of its two terms. It tells what other
images of this kind would change, not what another training with another seed would. Resamples repeat images, and have a
higher AP on average by that: intervals have their width, and the reported number as their center. A class that has no
object in a resample is left out of its means; the interval of a class with one or two images means nothing."""


def points(classes: Sequence[Row]) -> str:
    """About a plot of classes."""
    legend = "A point per class, which the mouse names; a dashed line for the mean of each group."
    if classes[0]["train_images"] is None:
        return f"{legend} The training set was not named, so that validation objects stand in for training images."
    return legend
