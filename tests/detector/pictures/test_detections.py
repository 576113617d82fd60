import numpy as np
import pytest

from longshot.detector.build_data import build_val
from longshot.detector.inference import load_model
from longshot.detector.pictures.detections import detection_sheet
from longshot.detector.pictures.drawing import color_of


@pytest.fixture(scope="module")
def model(learned):
    return load_model(learned / "checkpoints" / "best.pt")


@pytest.fixture
def draw(model, cpu):
    def build(count, **options):
        val = build_val(model.config, cpu)
        sizes = {"short_side": 64, "long_side": 96, "pad_multiple": 32}
        return detection_sheet(
            model.network, val, model.postprocess, model.classes.names, count=count, **sizes, **options
        )

    return build


def colored(picture, labels):
    """Pixels in the color of each label."""
    return np.array([(picture == np.array(color_of(label))).all(-1).sum() for label in labels])


def test_ground_truth_is_left_and_detections_are_right(draw):
    whole, empty = draw(1), draw(1, score_threshold=1.0)
    assert whole.dtype == np.uint8
    assert whole.shape == empty.shape
    middle = (whole.shape[1] - 10) // 2  # of the one pair, without the gap of the sheet
    assert (whole[:, : middle - 10] == empty[:, : middle - 10]).all()
    # A model that has learned draws about the same boxes as the truth; above a score of 1 there is none.
    left, right, none = (colored(part, range(4)) for part in (whole[:, :middle], whole[:, middle:], empty[:, middle:]))
    assert ((left > 300) == (right > 300)).all()
    assert (left > 300).any()
    assert (none < 50).all()


def test_images_are_spread_over_the_dataset_and_not_more_than_there_are(draw, monkeypatch):
    from longshot.datasets.loading.dataset import DetectionDataset

    read, indices = DetectionDataset.read, []
    monkeypatch.setattr(DetectionDataset, "read", lambda self, i, view: (indices.append(i), read(self, i, view))[1])
    draw(3)
    assert indices == [0, 3, 6]
    indices.clear()
    draw(50)
    assert indices == list(range(7))
