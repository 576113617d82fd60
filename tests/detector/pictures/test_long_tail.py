"""What is said and drawn of a dataset."""

import numpy as np
import pytest
import torch

from longshot.datasets.annotations.cache import cache_path
from longshot.datasets.classes import Classes
from longshot.datasets.loading.batches import Batch
from longshot.datasets.loading.dataset import Targets
from longshot.datasets.loading.samplers import TrainingStream
from longshot.detector.build_data import build_data
from longshot.detector.pictures.batches import batch_sheet
from longshot.detector.pictures.long_tail import long_tail_figure
from longshot.detector.run.folder import describe
from longshot.detector.system.distributed import Process


@pytest.fixture(scope="module")
def data(make_config, tmp_path_factory):
    return build_data(make_config(tmp_path_factory.mktemp("unused")), Process(0, 1, torch.device("cpu")))


def with_classes(data, frequencies, train_images):
    names = [f"class {k}" for k in range(len(frequencies))]
    return data._replace(classes=Classes(list(data.classes.ids), names, frequencies, train_images))


def batch_of(image, *, padded_size, boxes=(), ignore_boxes=()):
    def tensor(rows):
        return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)

    targets = Targets(tensor(boxes), torch.zeros(len(boxes), dtype=torch.int64), tensor(ignore_boxes))
    return Batch([image], [targets], [0], [17], [tuple(image.shape[1:])], [padded_size])


def test_description_counts_images_objects_and_classes(data):
    text = describe(with_classes(data, ["f", "r", "c", "r"], [30, 0, 12, 2]))
    objects = data.train.annotations.instance_counts.sum()
    assert f"train: 24 images, {objects} objects" in text
    assert (
        "4 classes (rare 2, common 1, frequent 1, as the file says), in training images: class 0 30, class 2 12, class 3 2"
        in text
    )
    assert "an epoch is 24 images" in text


def test_description_shortens_a_long_list_of_classes(data):
    classes = Classes(list(range(20)), [f"c{k}" for k in range(20)], ["r"] * 20, list(range(20)))
    text = describe(data._replace(classes=classes))
    assert "c19 19, c18 18, c17 17, c16 16, c15 15, …, c4 4, c3 3, c2 2, c1 1, c0 0" in text


def test_description_says_where_the_annotations_are_cached(data):
    annotations = data.train.annotations
    text = describe(data)
    assert f"({annotations.path}, cached in {cache_path(annotations.path)})" in text


def test_description_names_the_images_and_classes_that_come_most_often(data):
    labels, images = data.train.learned_objects()
    here = set(labels[images == 3].tolist())
    factors = np.ones(24)
    factors[3] = 5
    stream = TrainingStream(24, batch_size=2, seed=0, factors=factors)
    text = describe(data._replace(stream=stream))
    name = data.train.annotations.file_names[3]
    assert f"an epoch is 28 images after the sampler; seen most in the first are the images {name} (5 times)" in text
    holders = {k: len(set(images[labels == k].tolist())) for k in here}
    most = min(holders, key=lambda k: (holders[k], k))
    expected = (holders[most] + 4) / holders[most]
    assert f"and those with {data.classes.names[most]} ({expected:.1f} times on average)" in text


def test_sheet_shows_image_and_padding_as_the_model_gets_them():
    image = torch.full((3, 400, 300), 200, dtype=torch.uint8)
    picture = batch_sheet([batch_of(image, padded_size=(448, 384))], ["ant"], count=1, columns=1)
    title = picture.shape[0] - 448 - 10  # the sheet leaves 10 pixels below and beside each picture
    assert picture.shape[1] == 384 + 10
    shown = picture[title : title + 448, :384]
    assert (shown[:400, :300] == 200).all()
    assert (shown[402:, :] == (124, 116, 104)).all()  # ImageNet's mean color: 0 after normalization
    assert (shown[:, 302:] == (124, 116, 104)).all()
    assert (shown[400, :300] == 255).all(), "a line shows where the image ends"


def test_sheet_hatches_ignore_regions_only():
    image = torch.zeros((3, 400, 400), dtype=torch.uint8)
    batch = batch_of(image, padded_size=(400, 400), boxes=[[10, 210, 90, 290]], ignore_boxes=[[200, 200, 300, 300]])
    picture = batch_sheet([batch], ["ant"], count=1, columns=1)
    shown = picture[picture.shape[0] - 400 - 10 :][:400, :400]
    assert 0.3 < (shown[210:290, 210:290] > 0).mean() < 0.7
    assert (shown[220:280, 20:80] == 0).all(), "the inside of an object's box stays as it is"


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (4, 1), (5, 2), (9, 2)])
def test_sheet_holds_the_first_images_of_several_batches(count, rows):
    image = torch.zeros((3, 400, 400), dtype=torch.uint8)
    one = batch_of(image, padded_size=(400, 400))
    three = Batch([image] * 3, one.targets * 3, [0] * 3, [1, 2, 3], [(400, 400)] * 3, [(400, 400)] * 3)
    read = []

    def batches():
        for number in range(2):
            read.append(number)
            yield three

    picture = batch_sheet(batches(), ["ant"], count=count)
    assert picture.shape[0] // 420 == rows
    assert len(read) == (1 if count < 4 else 2)


def bars(axes):
    """Height of the bar at each class, drawn from one half up."""
    heights = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() + bar.get_y() for bar in axes.patches}
    return [heights[x] for x in sorted(heights)]


def thresholds(axes):
    return [line.get_ydata()[0] for line in axes.lines]


def test_histogram_sorts_classes_and_marks_thresholds(data):
    above, below = long_tail_figure(
        with_classes(data, ["c", "f", "r", "r"], [30, 101, 0, 10]), rare=10, common=100
    ).axes
    assert bars(above) == [101, 30, 10, 0.5]  # no image: no bar above the lower edge
    assert bars(below) == np.maximum(data.val.annotations.instance_counts[[1, 0, 3, 2]], 0.5).tolist()
    assert thresholds(above) == [10.5, 100.5]
    assert above.get_yscale() == below.get_yscale() == "log"
    assert [text.get_text() for text in below.get_xticklabels()] == ["class 1", "class 0", "class 3", "class 2"]
    labels = [text.get_text() for text in above.get_legend().get_texts()]
    assert labels == ["frequent: 1 classes", "common: 1 classes", "rare: 2 classes, 1 empty"]


def test_histogram_marks_no_thresholds_that_do_not_give_the_groups(data):
    figure = long_tail_figure(with_classes(data, ["c", "f", "r", "c"], [30, 101, 0, 10]), rare=10, common=100)
    assert thresholds(figure.axes[0]) == []


@pytest.mark.filterwarnings("error")  # of a layout that fails, for instance
def test_histogram_of_rare_classes_alone_has_room_for_the_thresholds(data, tmp_path):
    figure = long_tail_figure(with_classes(data, ["r"] * 4, [1, 1, 2, 3]), rare=10, common=100)
    figure.savefig(tmp_path / "figure.png")
    assert figure.axes[0].get_ylim()[1] > 100


def test_histogram_of_many_classes_leaves_their_names_out(data, monkeypatch):
    monkeypatch.setattr("longshot.detector.pictures.long_tail._NAMED_CLASSES", 3)
    figure = long_tail_figure(with_classes(data, ["r"] * 4, [1, 1, 2, 3]), rare=10, common=100)
    assert not {"class 0", "class 3"} & {text.get_text() for text in figure.axes[1].get_xticklabels()}
