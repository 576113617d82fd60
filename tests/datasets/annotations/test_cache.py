"""What is read from the cache is what the file says, whatever has happened to either."""

import dataclasses
import logging
import mmap
import multiprocessing
import os
import pickle
import shutil

import numpy as np
import pytest

from longshot.datasets import DataError
from longshot.datasets.annotations import annotations
from longshot.datasets.annotations import cache as annotation_cache
from longshot.datasets.annotations.annotations import Annotations, read_annotations
from longshot.datasets.annotations.cache import Texts, cache_path


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """The user's folder of caches."""
    folder = tmp_path / "home"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def parses(monkeypatch):
    """The paths that were parsed."""
    paths, decode = [], annotations.decode

    def counted(path):
        paths.append(path)
        return decode(path)

    monkeypatch.setattr(annotations, "decode", counted)
    return paths


@pytest.fixture
def big(write, content):
    """A file whose middle is in neither of the ends that are looked at; annotation 101 is there, with a width of 20."""
    first, *others = content.pop("annotations")
    return write({"info": "x" * 100_000, "annotations": [first], "padding": "x" * 100_000, **content, "more": others})


def values(read: Annotations) -> dict:
    """Everything that was read, as plain objects with the types of the arrays."""
    plain = {f.name: getattr(read, f.name) for f in dataclasses.fields(read) if f.name not in ("path", "cached")}
    return {
        name: (v.dtype, v.tolist()) if isinstance(v, np.ndarray) else list(v) if isinstance(v, Texts) else v
        for name, v in plain.items()
    }


def is_mapped(array) -> bool:
    while isinstance(array, np.ndarray):
        array = array.base
    return isinstance(array, mmap.mmap)


# ------------------------------------------------------------------------------------------------- the same, only faster


def test_second_open_is_mapped_and_says_the_same(write, content, parses):
    content["images"][0]["neg_category_ids"], content["images"][1]["file_name"] = [90, 3], "Zoë \ud800.png"
    content["categories"][0]["name"] = "\ud83d zebra"  # half of a surrogate pair, which JSON can hold
    path = write(content)
    parsed = values(annotations._parse(path))
    parses.clear()
    first, second = read_annotations(path), read_annotations(path)
    assert parses == [path]
    assert values(first) == values(second) == parsed
    assert second.cached.file == cache_path(path)
    arrays = [v for v in vars(second).values() if isinstance(v, np.ndarray)]
    assert len(arrays) == 14
    for array in (*arrays, second.file_names.content, second.file_names.offsets):
        assert is_mapped(array)
        assert not array.flags.writeable
        assert array.ctypes.data % 64 == 0


def test_file_without_annotations_is_cached_too(write, content, parses):
    content["annotations"] = []
    path = write(content)
    assert values(read_annotations(path)) == values(read_annotations(path))
    assert len(parses) == 1


def test_texts_are_a_sequence():
    texts = Texts.of(["", "ab", "Zoë", "\ud800"])
    assert list(texts) == texts[:] == ["", "ab", "Zoë", "\ud800"]
    assert (len(texts), texts[-2], texts[np.int64(1)], texts[1:3]) == (4, "Zoë", "ab", ["ab", "Zoë"])
    assert list(Texts.of([])) == []
    for beyond in (4, -5):
        with pytest.raises(IndexError):
            texts[beyond]


# ------------------------------------------------------------------------------------------------------ the file changes


def edit(path, old, new, *, keep_time=False):
    before, text = path.stat(), path.read_bytes()
    assert text.count(old) == 1
    path.write_bytes(text.replace(old, new))
    times = before.st_atime_ns, before.st_mtime_ns + (0 if keep_time else 10**9)
    os.utime(path, ns=times)


def test_change_of_one_byte_in_the_middle_is_seen_by_the_time(big):
    assert read_annotations(big).boxes_xywh.tolist() == [[10, 5, 20, 10]]
    edit(big, b"[10, 5, 20, 10]", b"[10, 5, 21, 10]")
    assert read_annotations(big).boxes_xywh.tolist() == [[10, 5, 21, 10]]


@pytest.mark.parametrize(("old", "new"), [(b'{"info"', b'{"xnfo"'), (b'"bbox": [-5, 70', b'"bbox": [-6, 70')])
def test_change_at_either_end_is_seen_though_size_and_time_are_kept(big, parses, old, new):
    read_annotations(big)
    edit(big, old, new, keep_time=True)
    read_annotations(big)
    assert len(parses) == 2


def test_longer_file_is_read_anew_though_its_ends_and_time_are_kept(big, parses):
    read_annotations(big)
    edit(big, b'"padding"', b'"more padding"', keep_time=True)
    read_annotations(big)
    assert len(parses) == 2


def test_touched_file_is_hashed_once_and_not_parsed(big, parses, monkeypatch):
    read_annotations(big)
    os.utime(big, ns=(0, 0))
    assert values(read_annotations(big)) == values(annotations._parse(big))
    monkeypatch.setattr(annotation_cache, "digest_of", None)
    assert read_annotations(big).cached.file == cache_path(big)
    assert parses == [big, big]  # the second by this test


def test_file_that_changes_while_it_is_parsed_is_not_cached(big, monkeypatch):
    decode = annotations.decode

    def slow(path):
        decoded = decode(path)
        edit(path, b"[10, 5, 20, 10]", b"[10, 5, 21, 10]")
        return decoded

    monkeypatch.setattr(annotations, "decode", slow)
    assert read_annotations(big).boxes_xywh.tolist() == [[10, 5, 20, 10]]
    monkeypatch.setattr(annotations, "decode", decode)
    assert read_annotations(big).boxes_xywh.tolist() == [[10, 5, 21, 10]]


# ----------------------------------------------------------------------------------------------------- the cache changes


def truncated(cache, at):
    cache.write_bytes(cache.read_bytes()[:at])


def flipped(cache, at):
    content = bytearray(cache.read_bytes())
    content[at] ^= 1
    cache.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda cache: truncated(cache, 0),
        lambda cache: truncated(cache, 9),
        lambda cache: truncated(cache, 500),
        lambda cache: truncated(cache, -1),
        lambda cache: flipped(cache, 3),  # the checksum
        lambda cache: flipped(cache, 60),  # the manifest
        lambda cache: flipped(cache, cache.read_bytes().index(b"2.png")),  # an array
        lambda cache: cache.write_bytes(
            bytes(cache.stat().st_size)
        ),  # what a crash can leave of a file not yet on disk
        lambda cache: cache.write_text("something else\n"),
    ],
)
def test_damaged_cache_is_made_anew(write, content, parses, damage):
    path = write(content)
    expected, whole = values(read_annotations(path)), cache_path(path).read_bytes()
    damage(cache_path(path))
    assert values(read_annotations(path)) == expected
    assert len(parses) == 2
    assert cache_path(path).read_bytes() == whole


def test_cache_of_another_version_of_the_code_is_made_anew(write, content, parses, monkeypatch):
    path, code = write(content), annotation_cache._code()
    monkeypatch.setattr(annotation_cache, "_code", lambda: "0" * 32)
    read_annotations(path)
    monkeypatch.setattr(annotation_cache, "_code", lambda: code)
    for _ in range(2):
        read_annotations(path)
    assert len(parses) == 2


def test_version_is_the_text_of_the_modules_that_read(monkeypatch, tmp_path):
    folder = shutil.copytree(os.path.dirname(annotation_cache.__file__), tmp_path / "datasets")
    monkeypatch.setattr(annotation_cache, "__file__", str(folder / "cache.py"))
    version = annotation_cache._code.__wrapped__
    assert version() == annotation_cache._code()
    for module in ("annotations.py", "coco.py", "coco_stream.py", "cache.py"):
        before = version()
        (folder / module).write_text((folder / module).read_text() + "#")
        assert version() != before


def test_cache_of_another_file_is_made_anew(write, content):
    path = write(content)
    read_annotations(path)
    content["annotations"][0]["bbox"][2] = 21
    other = write(content, "other.json")
    shutil.copyfile(cache_path(path), cache_path(other))
    shutil.copystat(path, other)  # same size, same time
    assert read_annotations(other).boxes_xywh[4].tolist() == [10, 5, 21, 10]


# ------------------------------------------------------------------------------------------------------ where it is put


def test_the_cache_lies_in_the_users_folder_and_leaves_that_of_the_data_alone(write, content, parses, tmp_path, home):
    (tmp_path / "data").mkdir()
    path = write(content, "data/train.json")
    for _ in range(2):
        assert read_annotations(path).cached.file.parent == home / "longshot" / "annotations"
    assert parses == list(path.parent.iterdir()) == [path]


def test_windows_has_a_folder_of_its_own_for_caches(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert cache_path(tmp_path / "train.json").is_relative_to(tmp_path / "local")


def test_files_of_one_name_have_caches_of_their_own(write, content, parses, tmp_path, home):
    paths = [write(content)]
    content["annotations"].pop()
    (tmp_path / "b").mkdir()
    paths.append(write(content, "b/train.json"))
    for _ in range(2):
        assert [len(read_annotations(path).labels) for path in paths] == [6, 5]
    assert len(parses) == 2


@pytest.mark.parametrize("setting", ["a file", "relative/folder"])
def test_without_any_place_the_file_is_read_all_the_same(write, content, caplog, tmp_path, monkeypatch, setting):
    path = write(content)
    expected = values(annotations._parse(path))
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", setting if setting.startswith("rel") else str(tmp_path / setting))
    with caplog.at_level(logging.WARNING):
        read = read_annotations(path)
    assert read.cached is None
    assert values(read) == values(pickle.loads(pickle.dumps(read))) == expected
    (message,) = caplog.messages
    assert "train.json: cannot be cached" in message
    assert "set XDG_CACHE_HOME" in message


def test_full_disk_leaves_no_part_of_a_cache(write, content, monkeypatch, home):
    path = write(content)

    def write_some(file, *_):
        file.write_bytes(b"some")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(annotation_cache, "_write", write_some)
    assert read_annotations(path).cached is None
    assert [place.name for place in path.parent.rglob("*") if place.is_file()] == [path.name]


# --------------------------------------------------------------------------------------------------------- many processes


def _read_together(path, barrier, results):
    barrier.wait(30)
    results.put(values(read_annotations(path)))


def test_processes_that_read_at_once_all_end_well(write, content):
    content["annotations"] = [{**content["annotations"][0], "id": i} for i in range(2000)]
    path = write(content)
    expected = values(annotations._parse(path))
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_read_together, args=(path, barrier, results)) for _ in range(4)]
    for process in processes:
        process.start()
    assert [results.get(timeout=30) for _ in processes] == [expected] * 4
    for process in processes:
        process.join(30)
    assert read_annotations(path).cached.file == cache_path(path)
    assert not list(cache_path(path).parent.glob("*.tmp"))


def test_writers_at_the_same_moment_do_not_meet(write, content, home, monkeypatch):
    path, write_cache, others = write(content), annotation_cache._write, []

    def interrupted(*arguments):
        write_cache(*arguments)
        if not others:
            others.append(None)
            others.append(read_annotations(path))

    monkeypatch.setattr(annotation_cache, "_write", interrupted)
    read = read_annotations(path)
    assert values(read) == values(others[1])
    assert read.cached.file == others[1].cached.file == cache_path(path)
    assert list(cache_path(path).parent.iterdir()) == [cache_path(path)]


def test_pickle_is_the_name_of_the_file_and_not_its_content(write, content, parses):
    content["annotations"] = [{**content["annotations"][0], "id": i} for i in range(2000)]
    read = read_annotations(write(content))
    pickled = pickle.dumps(read)
    assert len(pickled) < 500
    again = pickle.loads(pickled)
    assert values(again) == values(read)
    assert is_mapped(again.boxes_xywh)
    assert len(parses) == 1


def test_worker_does_not_read_another_file_than_its_parent(write, content):
    path = write(content)
    pickled = pickle.dumps(read_annotations(path))
    content["annotations"].pop()
    write(content)
    with pytest.raises(DataError, match=r"train\.json: the annotation file was changed while it was in use"):
        pickle.loads(pickled)


def test_altered_copy_is_pickled_as_it_is(write, content):
    read = dataclasses.replace(read_annotations(write(content)), class_names=("a", "b", "c"))
    assert pickle.loads(pickle.dumps(read)).class_names == ("a", "b", "c")


def test_open_annotations_outlive_their_cache(write, content):
    path = write(content)
    read = read_annotations(path)
    expected = values(read)
    content["annotations"].pop()
    write(content)
    assert len(read_annotations(path).labels) == 5
    cache_path(path).unlink()
    assert values(read) == expected
