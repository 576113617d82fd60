"""CSV files in pieces."""

import pytest

from longshot.datasets import DataError
from longshot.datasets.convert import tables
from longshot.datasets.convert.problems import Problems
from longshot.datasets.convert.tables import parse, read_table


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(tables, "_ROWS", 3)


def test_lines_are_those_of_the_file_in_every_piece(write_text):
    path = write_text("t.csv", "\ufeffa,b\n" + "".join(f"{i},x\n" for i in range(4)) + "\n4,x,y\n5,x\n")
    problems = Problems()
    pieces = list(read_table(path, ("A",), problems, progress=False))
    assert [(list(p.lines), list(p.columns[0])) for p in pieces] == [
        ([2, 3, 4], ["0", "1", "2"]),
        ([5], ["3"]),  # line 6 is blank, line 7 has three fields
        ([8], ["5"]),
    ]
    with pytest.raises(DataError, match=r"t.csv:7: 3 fields, but the header has 2\. Nothing"):
        problems.check()


def test_bad_numbers_of_later_pieces_are_named_by_their_lines(write_text):
    path = write_text("t.csv", "a\n" + "1\n" * 4 + "x\n2\n")
    problems = Problems()
    numbers = [
        parse(p, 0, float, "a number", path, problems) for p in read_table(path, ("a",), problems, progress=False)
    ]
    assert numbers[1].tolist()[0::2] == [1, 2]
    with pytest.raises(DataError, match=r"t.csv:6: 'x' is not a number\. Nothing"):
        problems.check()


def test_text_of_another_encoding_is_refused(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"a\n\xff\n")
    with pytest.raises(DataError, match=r"t.csv: not a CSV file in UTF-8"):
        list(read_table(path, ("a",), Problems(), progress=False))
