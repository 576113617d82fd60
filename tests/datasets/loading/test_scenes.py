from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import avg_pool2d

from longshot.datasets import read_annotations
from longshot.datasets.images.augmentation import Augmentation, ColorJitter, Crop, LargeScaleJitter, MixUp, Mosaic
from longshot.datasets.images.transforms import Region, View, draw_view, resized_size
from longshot.datasets.loading.dataset import DetectionDataset
from longshot.datasets.loading.samplers import TrainingStream
from longshot.datasets.loading.scenes import Scene, Tile, draw_scenes, read_scene, single

OPTIONS = {"seed": 3, "short_sides": (60, 80), "long_side": 120, "flip": 0.5}
MEAN = torch.tensor([124, 116, 104], dtype=torch.uint8)
SIZES = [(60, 90), (90, 60), (64, 64), (40, 100), (120, 160), (50, 50)]
GREEN, CROWD = (0, 200, 0), (0, 0, 200)


@pytest.fixture
def dataset(write, tmp_path) -> DetectionDataset:
    """Black images; image i has a green object of class i, image 1 also a blue crowd; image 5 is empty."""
    folder, objects = tmp_path / "drawn", []
    folder.mkdir()
    for i, (height, width) in enumerate(SIZES):
        pixels = np.zeros((height, width, 3), np.uint8)
        if i < 5:
            pixels[10:35, 12:42] = GREEN
            objects.append({"id": i, "image_id": i, "category_id": i, "bbox": [12, 10, 30, 25]})
        if i == 1:
            pixels[60:90, 20:50] = CROWD
            objects.append({"id": 9, "image_id": 1, "category_id": 1, "bbox": [20, 60, 30, 30], "iscrowd": 1})
        Image.fromarray(pixels).save(folder / f"{i}.png")
    content = {
        "images": [{"id": i, "height": h, "width": w, "file_name": f"{i}.png"} for i, (h, w) in enumerate(SIZES)],
        "annotations": objects,
        "categories": [{"id": i, "name": f"class {i}"} for i in range(6)],
    }
    return DetectionDataset(read_annotations(write(content)), folder)


def _stream(batch_size=8, **options):
    return TrainingStream(len(SIZES), batch_size=batch_size, seed=3, **options)


def _draw(dataset, steps=20, **augmentation) -> list[Scene]:
    options = {"size_of": dataset.size, "augmentation": Augmentation(**augmentation), **OPTIONS}
    stream = _stream()
    return [scene for step in range(steps) for scene in draw_scenes(stream, step, **options)]


def test_without_augmentation_a_scene_is_the_view_of_its_position(dataset):
    draws = {key: OPTIONS[key] for key in ("seed", "short_sides", "long_side", "flip")}
    pairs = [pair for step in range(20) for pair in _stream().step(step)]
    expected = [single(index, draw_view(dataset.size(index), position=position, **draws)) for index, position in pairs]
    assert _draw(dataset) == expected


ALL = {
    "crop": {"crop": Crop(min_side=0.3)},
    "jitter": {"large_scale_jitter": LargeScaleJitter(size=(100, 80), min_scale=0.3, max_scale=3.0)},
    "crop and jitter": {"crop": Crop(), "large_scale_jitter": LargeScaleJitter(size=(80, 80))},
    "mosaic": {"mosaic": Mosaic(size=(90, 140), min_scale=0.4, max_scale=1.5)},
    "everything but colors and MixUp": {
        "crop": Crop(), "mosaic": Mosaic(size=(96, 96)), "large_scale_jitter": LargeScaleJitter(size=(90, 120)),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", ALL)
def test_objects_and_their_boxes_stay_together(dataset, name):
    found = Counter()
    for scene in _draw(dataset, **ALL[name]):
        image, targets = read_scene(dataset.read, scene)
        assert image.shape == (3, *scene.size)
        assert image.dtype == torch.uint8
        shown = {tile.index for tile in scene.tiles}
        assert set(targets.labels.tolist()) <= shown
        outside = image[1] > 100  # the padding has 116
        outside &= image[0] < 60
        for kind, boxes in (("object", targets.boxes), ("ignored", targets.ignore_boxes)):
            for x1, y1, x2, y2 in boxes.tolist():
                assert 0 <= x1 < x2 <= scene.size[1]
                assert 0 <= y1 < y2 <= scene.size[0]
                inside = image[:, int(y1 + 2) : int(y2 - 1), int(x1 + 2) : int(x2 - 1)]
                found[kind] += inside.numel() > 0
                assert (inside.amax(dim=0) > 150).all()  # green or blue, and no background
                if kind == "object":
                    assert (inside[1] > 150).all()
                outside[max(0, int(y1 - 2)) : int(y2 + 3), max(0, int(x1 - 2)) : int(x2 + 3)] = False
        # Nothing green but the slivers of what was dropped: no block of three by three.
        assert avg_pool2d(outside[None].float(), kernel_size=3, stride=1, padding=1).max() < 1
    assert min(found["object"], found["ignored"]) > 5


def test_crop_by_hand(dataset):
    view = View((60, 80), flip=False, crop=Region(20, 2, 30, 40))  # of 60 x 90; twice as large
    image, targets = dataset.read(0, view)
    assert targets.boxes.tolist() == [[20, 0, 80, 30]]  # (12, 10, 42, 35) less (2, 20), twice
    assert targets.labels.tolist() == [0]
    assert (image[1, :28, 22:] > 190).all()
    flipped, mirrored = dataset.read(0, view._replace(flip=True))
    assert mirrored.boxes.tolist() == [[0, 0, 60, 30]]
    assert (flipped[1, :28, :58] > 190).all()


@pytest.mark.parametrize(
    ("left", "labels", "ignored"),
    [
        (34, [0], []),  # 8 of 30 columns are left
        (35, [], [[0, 10, 7, 35]]),  # 7 of 30: less than a quarter
        (41, [], [[0, 10, 1, 35]]),
        (42, [], []),
    ],
)
def test_object_counts_if_a_quarter_of_it_is_left(dataset, left, labels, ignored):
    _, targets = dataset.read(0, View((60, 48), flip=False, crop=Region(0, left, 60, 48)))
    assert targets.labels.tolist() == labels
    assert targets.ignore_boxes.tolist() == ignored


def test_labels_stay_with_their_boxes_when_others_are_cut_away(write, image_folder):
    def annotation(number, x):
        return {"id": number, "image_id": 90, "category_id": 3 * number, "bbox": [x, 4, 10, 10]}

    content = {
        "images": [{"id": 90, "height": 30, "width": 80, "file_name": "90.png"}],
        "annotations": [annotation(1, 0), annotation(2, 40), annotation(3, 20), annotation(4, 60)],
        "categories": [{"id": 3 * number, "name": str(number)} for number in (1, 2, 3, 4)],
    }
    dataset = DetectionDataset(read_annotations(write(content)), image_folder)
    _, targets = dataset.read(0, View((30, 50), flip=False, crop=Region(0, 30, 30, 50)))
    assert targets.boxes.tolist() == [[10, 4, 20, 14], [30, 4, 40, 14]]
    assert targets.labels.tolist() == [1, 3]


def test_box_of_less_than_a_pixel_is_dropped(dataset):
    whole = Region(0, 0, 60, 90)
    for height, count in ((3, 1), (2, 0)):  # 25 of 60 rows: 1.25 pixels and 0.83
        _, targets = dataset.read(0, View((height, 90), flip=False, crop=whole))
        assert [len(targets.boxes), len(targets.labels), len(targets.ignore_boxes)] == [count, count, 0]
    assert len(dataset.read(0, View((2, 90), flip=False))[1].boxes) == 1  # a view that does not crop leaves out nothing


def test_mosaic_by_hand(dataset):
    tiles = (
        Tile(0, View((30, 45), False, Region(0, 0, 60, 90)), (10, 15)),  # half as large
        Tile(2, View((40, 64), True, Region(0, 0, 40, 64)), (0, 60)),
        Tile(5, View((20, 20), False, Region(0, 0, 50, 50)), (40, 40)),  # without objects
        Tile(1, View((50, 40), False, Region(40, 10, 50, 40)), (40, 60)),  # its object is above, its crowd inside
    )
    image, targets = read_scene(dataset.read, Scene((90, 130), tiles))
    assert targets.boxes.tolist() == [
        [15 + 6, 10 + 5, 15 + 21, 10 + 17.5],
        [60 + 64 - 42, 10, 60 + 64 - 12, 35],
    ]
    assert targets.labels.tolist() == [0, 2]
    assert targets.ignore_boxes.tolist() == [[60 + 10, 40 + 20, 60 + 40, 40 + 50]]
    assert torch.equal(image[:, :10, :60], MEAN[:, None, None].expand(3, 10, 60))
    assert torch.equal(image[:, 60:, 40:60], MEAN[:, None, None].expand(3, 30, 20))
    assert (image[:, 60:90, 70:100] == torch.tensor(CROWD)[:, None, None]).all()


def test_mixup_by_hand(dataset):
    partner = Tile(2, View((32, 32), False, Region(0, 0, 64, 64)))
    scene = single(0, View((60, 90), False))._replace(partner=partner, weight=0.75)
    image, targets = read_scene(dataset.read, scene)
    assert targets.boxes.tolist() == [[12, 10, 42, 35], [6, 5, 21, 17.5]]
    assert targets.labels.tolist() == [0, 2]
    assert image[:, 12, 15].tolist() == [0, 200, 0]  # green on green
    assert image[:, 8, 15].tolist() == [0, 50, 0]  # a quarter of the partner's green
    assert image[:, 28, 28].tolist() == [0, 150, 0]  # three quarters of the first's on the partner's black
    assert image[:, 2, 2].tolist() == [0, 0, 0]
    assert image[:, 50, 80].tolist() == [31, 29, 26]  # beside the partner: a quarter of the mean color
    assert image.dtype == torch.uint8


def test_colors_change_and_nothing_else_does(dataset):
    plain, colored = _draw(dataset), _draw(dataset, color_jitter=ColorJitter(hue=0.1))
    differ = 0
    for a, b in zip(plain, colored, strict=True):
        assert b.tiles[0].view._replace(colors=None) == a.tiles[0].view
        (image, targets), (recolored, same) = (read_scene(dataset.read, scene) for scene in (a, b))
        assert all(np.array_equal(x, y) for x, y in zip(targets, same, strict=True))
        assert recolored.shape == image.shape
        differ += not torch.equal(image, recolored)
    assert differ > 100  # the images without objects are black, whatever their colors


def test_image_without_objects_goes_through_everything(dataset):
    stream = TrainingStream(1, batch_size=8, seed=3)  # the empty image is its own partner
    augmentation = Augmentation(
        LargeScaleJitter(size=(64, 64)), Crop(), ColorJitter(hue=0.2), Mosaic(size=(64, 64)), MixUp()
    )
    options = {**OPTIONS, "size_of": lambda _: dataset.size(5), "augmentation": augmentation}
    for scene in draw_scenes(stream, 0, **options):
        only = [tile._replace(index=5) for tile in scene.tiles]
        partner = scene.partner and scene.partner._replace(index=5)
        _, targets = read_scene(dataset.read, scene._replace(tiles=tuple(only), partner=partner))
        assert [array.shape for array in targets] == [(0, 4), (0,), (0, 4)]


def test_mosaic_and_mixup_come_as_often_as_asked(dataset):
    scenes = _draw(dataset, 125, mosaic=Mosaic(size=(64, 64), probability=0.7), mixup=MixUp(probability=0.2))
    assert len(scenes) == 1000
    assert sum(len(scene.tiles) == 4 for scene in scenes) == pytest.approx(700, abs=60)  # standard deviation 14
    assert sum(scene.partner is not None for scene in scenes) == pytest.approx(200, abs=50)
    assert all(scene.size == (64, 64) for scene in scenes if len(scene.tiles) == 4)
    assert sum(tile.view.flip for scene in scenes for tile in scene.tiles[1:]) == pytest.approx(1050, abs=100)


def test_partners_come_as_often_as_the_sampler_shows_them(dataset):
    stream = _stream(factors=np.array([1, 1, 1, 1, 1, 5.0]))
    options = {
        **OPTIONS,
        "size_of": dataset.size,
        "augmentation": Augmentation(mosaic=Mosaic(size=(64, 64), probability=1)),
    }
    scenes = [scene for step in range(150) for scene in draw_scenes(stream, step, **options)]
    partners = Counter(tile.index for scene in scenes for tile in scene.tiles[1:])
    assert partners[5] == pytest.approx(1800, abs=150)  # of 3600; standard deviation 30
    assert all(partners[i] == pytest.approx(360, abs=90) for i in range(5))


class CountedStream:
    """Image p at position p; two positions a step."""

    def step(self, step):
        return [(p, p) for p in (5000 + 2 * step, 5001 + 2 * step)]

    def indices(self, positions):
        return np.asarray(positions)


def test_partners_are_drawn_anew_for_each_seed_and_position_from_the_positions_around():
    options = {**OPTIONS, "size_of": lambda _: (50, 50)}
    options["augmentation"] = Augmentation(mosaic=Mosaic(size=(64, 64), probability=1.0), mixup=MixUp(probability=1.0))
    drawn = {}
    for seed in (0, 1):
        for step in range(200):
            for scene in draw_scenes(CountedStream(), step, **{**options, "seed": seed}):
                drawn[seed, scene.index] = [*(tile.index for tile in scene.tiles[1:]), scene.partner.index]
    assert len(drawn) == 800
    assert len(set(map(tuple, drawn.values()))) == 800
    partners = np.array(list(drawn.values()))
    assert (partners.min(), partners.max()) == pytest.approx((4096, 8191), abs=20)
    assert partners.min() >= 4096
    assert partners.max() < 8192
    assert partners.mean(axis=0) == pytest.approx([6144] * 4, abs=200)  # standard deviation 42


def test_crop_is_resized_as_an_image_of_its_size(dataset):
    for scene in _draw(dataset, crop=Crop(probability=1.0, min_side=0.2)):
        crop = scene.tiles[0].view.crop
        assert scene.size in {resized_size((crop.height, crop.width), short, 120) for short in (60, 80)}


def test_each_step_is_a_function_of_its_number(dataset):
    augmentation = {"mosaic": Mosaic(size=(64, 64)), "mixup": MixUp(), "color_jitter": ColorJitter(), "crop": Crop()}
    forward = _draw(dataset, 6, **augmentation)
    options = {**OPTIONS, "size_of": dataset.size, "augmentation": Augmentation(**augmentation)}
    assert draw_scenes(_stream(), 5, **options) == forward[40:]
    assert draw_scenes(_stream(), 5, **{**options, "seed": 4}) != forward[40:]
