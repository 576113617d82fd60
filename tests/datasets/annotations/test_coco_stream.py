import json
import random

import msgspec
import pytest

from longshot.datasets.annotations import coco_stream
from longshot.datasets.annotations.coco_stream import IrregularFileError, stream_lists


class Record(msgspec.Struct, gc=False):
    id: int
    name: str | None = None


class Other(msgspec.Struct):
    key: str


@pytest.fixture
def stream(tmp_path):
    """text or bytes -> the lists, and into how many pieces each came."""

    def read(text):
        path = tmp_path / "file.json"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        lists, pieces = {"records": [], "others": []}, {"records": 0, "others": 0}
        for key, records in stream_lists(path, {"records": Record, "others": Other}):
            lists[key] += records
            pieces[key] += 1
        return lists, pieces

    return read


def _content(num_records=60, names=("{", "]}]", 'quote " and \\', "}]", "}\n ]", "Zoë")):
    """Records with braces in text, objects and lists in lists, which could be taken for their end."""
    records = [{"id": i, "name": names[i % len(names)]} for i in range(num_records)]
    for i, record in enumerate(records):
        record["segmentation"] = {"counts": "ab}", "size": [3, 4]} if i % 3 else [[1.5, 2.0, 3.0], [4.0]]
    return {"info": {"about": 'a "file", {with} [all]'}, "licenses": [], "records": records, "others": [{"key": "x"}]}


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("window", [300, 700, 10**6])
def test_lists_come_whole_and_in_order_in_whatever_pieces(stream, monkeypatch, indent, window):
    monkeypatch.setattr(coco_stream, "_WINDOW", window)
    content = _content()
    lists, pieces = stream(json.dumps(content, indent=indent))
    assert [(r.id, r.name) for r in lists["records"]] == [(r["id"], r["name"]) for r in content["records"]]
    assert [other.key for other in lists["others"]] == ["x"]
    assert pieces["records"] <= 2 if window == 10**6 else pieces["records"] > 5


def test_text_that_looks_like_the_end_of_a_record_ends_none(stream, monkeypatch):
    monkeypatch.setattr(coco_stream, "_WINDOW", 300)
    with pytest.raises(IrregularFileError):
        stream(json.dumps(_content(names=["a}, {"])))


def test_keys_may_come_in_any_order_and_lists_be_empty(stream):
    lists, _ = stream('{"n": 3, "others": [ ], "text": "a, b}", "records" : [{"id": 4}], "last": null}\n')
    assert [record.id for record in lists["records"]] == [4]
    assert lists["others"] == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"records": []}',
        '{"records": [], "others": {}}',
        '{"records": [], "records": [], "others": []}',
        '{"records": [], "others": []} x',
        '{"records": [], "others": [] "n": 1}',
        '{"records": [{"id": 1},], "others": []}',
        '{"records": [{"id": NaN}], "others": []}',
        '{"records": [{"id": "1"}], "others": []}',
        '\ufeff{"records": [], "others": []}',
        b'{"records": [], "others": [], "\xff": 1}',
    ],
)
def test_what_is_not_as_usual_is_left_to_others(stream, text):
    with pytest.raises(IrregularFileError):
        stream(text)


def test_record_longer_than_a_window_is_left_to_others(stream, monkeypatch):
    monkeypatch.setattr(coco_stream, "_WINDOW", 300)
    with pytest.raises(IrregularFileError):
        stream(json.dumps({"records": [{"id": 1, "name": "x" * 400}], "others": []}))


def test_space_behind_the_end_may_hide_nothing(stream, monkeypatch):
    monkeypatch.setattr(coco_stream, "_WINDOW", 100)
    with pytest.raises(IrregularFileError):
        stream('{"records": [], "others": []}' + " " * 200 + "x")


def test_damaged_text_is_refused_or_read_as_a_parser_reads_it(stream, monkeypatch):
    monkeypatch.setattr(coco_stream, "_WINDOW", 200)
    whole = json.dumps(_content(12, names=[*"abcdefghijk", "}, {"])).encode()
    rng, accepted = random.Random(0), 0
    for _ in range(600):
        at, length = rng.randrange(len(whole)), rng.choice([0, 1, 1, 5])
        text = whole[:at] + rng.choice([b"", b"", b"{", b"}", b"]", b",", b'"', b"\x0b", b" "]) + whole[at + length :]
        text = text[: rng.choice([len(text), len(text), rng.randrange(len(text))])]
        try:
            lists, _ = stream(text)
        except IrregularFileError:
            continue
        accepted += 1
        expected = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        assert lists["records"] == msgspec.json.decode(expected["records"], type=list[Record])
        assert lists["others"] == msgspec.json.decode(expected["others"], type=list[Other])
    assert accepted > 50
