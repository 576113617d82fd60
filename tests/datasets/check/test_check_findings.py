"""The table and the verdict."""

from longshot.datasets.check import Finding, table, verdict


def test_table_has_the_worst_first_and_shows_three_examples():
    findings = [
        Finding("train", "note", "images without objects", 1, ("image 7",)),
        Finding("val", "error", "boxes outside their image", 4, ("a", "b", "c", "d")),
    ]
    assert table(findings).splitlines() == [
        "severity  split  count  what                       first examples",
        "error     val        4  boxes outside their image  a; b; c; …",
        "note      train      1  images without objects     image 7",
    ]
    assert table([]) == ""


def test_thousands_have_a_comma():
    assert "  1,234  " in table([Finding("val", "error", "what", 1234, ("a",))])


def test_control_characters_of_a_file_name_do_not_reach_the_terminal():
    shown = table([Finding("train", "error", "what", 1, ("a\x1b[31m\n\ud800b",))])
    assert shown.splitlines()[1].endswith("a�[31m��b")


def test_verdict_is_one_line():
    rows = [Finding("train", severity, "what", 9, ()) for severity in ("warning", "error", "warning")]
    assert verdict(rows) == "FAILED: 1 error, 2 warnings"
    assert verdict(rows[:1]) == "passed: 1 warning"
    assert verdict([]) == "passed: nothing found"
