import numpy as np
import pytest
from PIL import Image, ImageOps

from longshot.datasets import DataError, read_annotations
from longshot.datasets.images.reading import check_images, read_image

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)


def _save(path, image=None, **options):
    (Image.fromarray(PIXELS) if image is None else image).save(path, **options)
    return path


def _oriented(path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return _save(path, exif=exif)


def test_rgb_is_read_as_it_is(tmp_path):
    assert np.array_equal(read_image(_save(tmp_path / "a.png"), (4, 6)), PIXELS)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_as_pillow_applies_it(tmp_path, orientation):
    path = _oriented(tmp_path / "a.png", orientation)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(read_image(path), expected)
    assert np.array_equal(read_image(path, expected.shape[:2]), expected)


def test_orientation_6_turns_clockwise(tmp_path):
    upright = read_image(_oriented(tmp_path / "a.png", 6))
    assert upright.shape == (6, 4, 3)
    assert np.array_equal(upright[0, -1], PIXELS[0, 0])  # the stored top left is the upright top right


def test_image_annotated_as_stored_stays_as_stored(tmp_path):
    assert np.array_equal(read_image(_oriented(tmp_path / "a.png", 6), (4, 6)), PIXELS)


@pytest.mark.parametrize("orientation", [0, 9, 4711])
def test_senseless_orientation_is_ignored(tmp_path, orientation):
    assert np.array_equal(read_image(_oriented(tmp_path / "a.png", orientation)), PIXELS)


def test_damaged_metadata_leave_the_pixels(tmp_path):
    path = _save(tmp_path / "a.png", exif=b"Exif\x00\x00no tiff header")
    assert np.array_equal(read_image(path), PIXELS)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp"])
def test_gray_has_three_equal_channels(tmp_path, suffix):
    gray = np.full((4, 6), 77, np.uint8)
    image = read_image(_save(tmp_path / f"a.{suffix}", Image.fromarray(gray)))
    assert np.array_equal(image, np.full((4, 6, 3), 77))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_gray_is_scaled_not_clipped(tmp_path, suffix):
    deep = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    image = read_image(_save(tmp_path / f"a.{suffix}", Image.fromarray(deep)))
    assert image[0, :, 0].tolist() == [0, 0, 1, 128, 255]
    assert image.shape == (1, 5, 3)


def test_palette_cmyk_alpha_and_bits_become_rgb(tmp_path):
    red = Image.new("RGB", (6, 4), (255, 0, 0))
    for mode, suffix in (
        ("P", "png"),
        ("P", "gif"),
        ("CMYK", "jpg"),
        ("RGBA", "png"),
        ("CMYK", "tif"),
        ("LA", "png"),
        ("1", "png"),
    ):
        image = read_image(_save(tmp_path / f"{mode}.{suffix}", red.convert(mode)))
        assert image.shape == (4, 6, 3), mode
        assert image.dtype == np.uint8, mode
        if mode not in ("LA", "1"):
            assert np.abs(image.astype(int) - (255, 0, 0)).max() < 8, (mode, suffix)


def test_palette_with_transparency_is_read_without_a_warning(tmp_path, recwarn):
    path = _save(tmp_path / "a.png", Image.fromarray(PIXELS).convert("P"), transparency=bytes(range(256)))
    assert read_image(path).shape == (4, 6, 3)
    assert not recwarn.list


def test_missing_image_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.jpg: no such image"):
        read_image(tmp_path / "nowhere.jpg")


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "gif", "webp", "bmp"])
def test_truncated_image_is_named(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = _save(tmp_path / f"cut.{suffix}", Image.fromarray(noise))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=rf"cut\.{suffix}: cannot be decoded as an image"):
        read_image(path)


@pytest.mark.parametrize(
    "content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n" + bytes(50), b"\xff\xd8\xff" + bytes(50)]
)
def test_foreign_file_is_named(tmp_path, content):
    path = tmp_path / "foreign.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"foreign\.jpg: cannot be decoded as an image"):
        read_image(path)


def test_floating_point_image_is_refused_with_advice(tmp_path):
    with pytest.raises(DataError, match=r"a\.tif: .*convert it to 8 or 16 bits"):
        read_image(_save(tmp_path / "a.tif", Image.new("F", (3, 3))))


def test_wrong_size_is_told_with_both_sizes(tmp_path):
    with pytest.raises(
        DataError, match=r"a\.png: has height 4 and width 6, but its annotations say height 8 and width 12"
    ):
        read_image(_save(tmp_path / "a.png"), (8, 12))


def test_folder_with_all_images_passes(write, content, image_folder):
    check_images(read_annotations(write(content)), image_folder)


def test_missing_folder_and_images_are_named(write, content, image_folder):
    annotations = read_annotations(write(content))
    with pytest.raises(DataError, match="elsewhere: no such folder of images"):
        check_images(annotations, image_folder / "elsewhere")
    (image_folder / "90.png").unlink()
    with pytest.raises(DataError, match=r"1 of the 5 images looked at are missing, for example 90\.png"):
        check_images(annotations, image_folder)


def test_only_the_first_and_last_50_images_are_looked_at(write, content, image_folder):
    content["images"] = [{"id": i, "height": 9, "width": 9, "file_name": f"{i}.png"} for i in range(120)]
    content["annotations"] = []
    for i in (*range(50), *range(70, 120)):
        (image_folder / f"{i}.png").touch()
    annotations = read_annotations(write(content))
    check_images(annotations, image_folder)
    (image_folder / "70.png").unlink()
    with pytest.raises(DataError, match=r"1 of the 100 images looked at are missing, for example 70\.png"):
        check_images(annotations, image_folder)


def test_lvis_user_is_told_to_have_both_folders(write, content, image_folder):
    del content["images"][0]["file_name"]
    content["images"][0]["coco_url"] = "http://images.cocodataset.org/train2017/000000000011.jpg"
    with pytest.raises(
        DataError, match=r"train2017/000000000011\.jpg.*put train2017 and val2017 of COCO into one folder"
    ):
        check_images(read_annotations(write(content)), image_folder)
