"""Pascal VOC XML as COCO JSON."""

import pytest

from longshot.datasets import DataError, read_annotations
from longshot.datasets.convert import convert_voc

DOG = "<object><name>dog</name><difficult>0</difficult><bndbox>{box}</bndbox></object>"
PERSON = """<object><name>person</name><pose>Left</pose><difficult>1</difficult>
    <part><name>head</name><bndbox><xmin>9</xmin><ymin>9</ymin><xmax>10</xmax><ymax>10</ymax></bndbox></part>
    <bndbox><ymin>3</ymin><xmin>2.5</xmin><ymax>40</ymax><xmax>60</xmax></bndbox></object>"""


def box(xmin=1, ymin=1, xmax=1, ymax=1):
    return f"<xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax>"


def xml(name, *objects, size="<width>60</width><height>40</height><depth>3</depth>"):
    filename = f"<filename>{name}</filename>" if name else ""
    return f"<annotation><folder>VOC2007</folder>{filename}<size>{size}</size>{''.join(objects)}</annotation>"


@pytest.fixture
def convert(tmp_path, write_text):
    """XML by name, options -> the file and the lines."""

    def run(contents, **options):
        for name, content in contents.items():
            write_text(f"Annotations/{name}.xml", content)
        out = tmp_path / "voc.json"
        return out, convert_voc(out, xml=tmp_path / "Annotations", **options, progress=False)

    return run


@pytest.fixture
def two():
    return {"b": xml("b.jpg", PERSON, DOG.format(box=box())), "a": xml("a.jpg", DOG.format(box=box(11, 21, 60, 40)))}


def test_the_first_pixel_is_the_box_from_0_to_1(convert, two, boxes_of):
    out, lines = convert(two)
    assert boxes_of(out) == [
        ("a.jpg", "dog", [10, 20, 50, 20], False, False),  # up to the last row and column of 60 x 40
        ("b.jpg", "person", [1.5, 2, 58.5, 38], False, True),  # the whole person, not the head; difficult
        ("b.jpg", "dog", [0, 0, 1, 1], False, False),
    ]
    assert lines == [f"{out}: 2 images, 3 boxes (1 difficult) of 2 classes"]


def test_classes_are_those_that_occur_by_name_and_sizes_those_of_the_xml(convert, two):
    known = read_annotations(convert(two)[0])
    assert known.class_names == ("dog", "person")
    assert known.category_ids.tolist() == [1, 2]
    assert known.image_sizes.tolist() == [[40, 60], [40, 60]]
    assert known.areas.tolist() == [1000, 58.5 * 38, 1]


def test_given_classes_keep_their_order_and_may_be_unused(convert, two, write_text):
    known = read_annotations(convert(two, classes=write_text("names.txt", "person\ncat\n\ndog\n"))[0])
    assert known.class_names == ("person", "cat", "dog")
    assert known.labels.tolist() == [2, 0, 2]


def test_image_set_chooses_the_images(convert, two, write_text):
    known = read_annotations(convert(two, image_set=write_text("train.txt", "b\n\n"))[0])
    assert list(known.file_names) == ["b.jpg"]


def test_image_without_objects_is_kept(convert, two):
    known = read_annotations(convert(two | {"c": xml("c.jpg")})[0])
    assert list(known.file_names) == ["a.jpg", "b.jpg", "c.jpg"]


def test_boxes_that_seem_to_count_from_0_are_told(convert, boxes_of):
    out, lines = convert({"a": xml("a.jpg", DOG.format(box=box(0, 5, 9, 9)), DOG.format(box=box(1, 1, 61, 9)))})
    assert boxes_of(out)[0][2] == [-1, 4, 10, 5]
    assert lines[1] == (
        "2 boxes are not within pixels 1 to width and 1 to height, and are kept as they are; "
        "do these files count from 0?"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<annotation>\n<oops</annotation>", "a.xml: not XML: .*line 2"),
        (xml("a.jpg", size=""), "a.xml: has no <size/width>"),
        (
            xml("a.jpg", size="<width>0</width><height>4</height>"),
            "a.xml: <size/width> is 0; expected a number of pixels",
        ),
        (xml(""), "a.xml: has no <filename>"),
        (
            xml("a.jpg", DOG.format(box=box()), DOG.format(box=box(xmin="x"))),
            "a.xml: object 2: <bndbox/xmin> is 'x'; exp",
        ),
        (xml("a.jpg", DOG.format(box=box(xmax="inf"))), "a.xml: object 1: <bndbox/xmax> is 'inf'; expected a number"),
        (xml("a.jpg", DOG.format(box=box(5, 5, 4, 9))), "object 1: box 5, 5, 4, 9: expected xmin <= xmax"),
        (xml("a.jpg", DOG.format(box="")), "object 1: has no <bndbox/xmin>"),
        (xml("a.jpg", "<object><bndbox>" + box() + "</bndbox></object>"), "object 1: has no <name>"),
        (xml("a.jpg", PERSON.replace(">1</diff", ">maybe</diff")), "object 1: <difficult> is 'maybe'; expected 0 or 1"),
        (xml("a.jpg"), "Annotations: 1 XML files without an object"),
    ],
)
def test_malformed_xml_is_named(convert, tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        convert({"a": content})
    assert not (tmp_path / "voc.json").exists()


def test_unknown_class_is_named_with_its_file(convert, two, write_text):
    with pytest.raises(DataError, match=r"b.xml: class 'person' is not in the list of 1 classes\. Nothing"):
        convert(two, classes=write_text("names.txt", "dog"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\nc\n", r"set.txt:2: 'c' has no .*c.xml"),
        ("a 1\n", r"set.txt:1: 'a 1' has no"),
        ("a\nb\na", r"set.txt:3: 'a' comes twice"),
        ("\n", r"set.txt: names no image"),
    ],
)
def test_malformed_image_set_is_named_with_its_line(convert, two, write_text, text, message):
    with pytest.raises(DataError, match=message):
        convert(two, image_set=write_text("set.txt", text))


def test_missing_or_empty_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such folder of XML files"):
        convert_voc(tmp_path / "o.json", xml=tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no XML file"):
        convert_voc(tmp_path / "o.json", xml=tmp_path)
