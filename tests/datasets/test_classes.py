import pytest

from longshot.datasets import DataError
from longshot.datasets.annotations.annotations import read_annotations
from longshot.datasets.classes import Classes

CLASSES = Classes([3, 7, 90], ["ant", "bee", "cat"], ["f", "c", "r"], [200, 20, 2])


def test_the_same_classes_pass_in_any_order():
    CLASSES.check_same([90, 3, 7], ["cat", "ant", "bee"], here="train", there="val")


@pytest.mark.parametrize(
    ("ids", "names", "told"),
    [
        ([3, 7], ["ant", "bee"], "1 differ: id 90: 'cat' here, nothing there"),
        ([3, 7, 8, 90], ["ant", "bee", "x", "cat"], "1 differ: id 8: nothing here, 'x' there"),
        ([3, 7, 90], ["bee", "ant", "cat"], "2 differ: id 3: 'ant' here, 'bee' there; id 7: 'bee' here, 'ant' there"),
    ],
)
def test_differing_classes_are_told_with_ids_and_names(ids, names, told):
    with pytest.raises(DataError) as error:
        CLASSES.check_same(ids, names, here="train.json", there="val.json")
    assert str(error.value).startswith(f"train.json has 3 classes, val.json has {len(ids)}; {told}. ")


def test_only_the_first_differences_are_told():
    with pytest.raises(DataError, match=r"20 differ: .*id 104: nothing here, 'x' there; …\. A label"):
        CLASSES.check_same([*CLASSES.ids, *range(100, 120)], [*CLASSES.names, *"x" * 20], here="a", there="b")


def test_groups_come_from_the_file_or_from_counts_of_images(shapes):
    stated = read_annotations(shapes.train)
    classes = Classes.from_annotations(stated)
    assert classes.ids == [3, 7, 12, 90]
    assert classes.names == ["red square", "green ring", "yellow disc", "blue bar"]
    assert classes.frequencies == ["f", "f", "c", "r"]

    class Unstated:
        def __getattr__(self, name):
            return None if name == "frequencies" else getattr(stated, name)

    counts = stated.image_counts.tolist()
    assert classes.train_images == counts
    rare, common = sorted(counts)[0], sorted(counts)[2]
    groups = Classes.from_annotations(Unstated(), rare=rare, common=common).frequencies
    assert groups == ["r" if n <= rare else "c" if n <= common else "f" for n in counts]
    assert set(groups) == {"r", "c", "f"}
