"""The tiny dataset with nothing wrong, and its check."""

import pytest

from longshot.datasets.check import SplitFiles, check_dataset


@pytest.fixture
def clean(content) -> dict:
    """The tiny dataset without its crowd box, the box that sticks out and the image without objects."""
    content["annotations"][4] = {"id": 104, "image_id": 7, "category_id": 7, "bbox": [1, 2, 3, 4]}
    content["annotations"][5]["bbox"] = [5, 50, 20, 30]
    return content


@pytest.fixture
def lvis(clean) -> dict:
    """With the fields of LVIS: ant has 2 objects in 2 images, bee 3 in 3, zebra 1 in 1."""
    for image in clean["images"]:
        image |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    stated = {3: ("c", 2, 2), 7: ("f", 3, 3), 90: ("r", 1, 1)}
    for category in clean["categories"]:
        frequency, images, instances = stated[category["id"]]
        category |= {"frequency": frequency, "image_count": images, "instance_count": instances}
    return clean


@pytest.fixture
def check(write):
    """(train, val or None) -> the findings of their annotations; a text is written as it is, a dict as JSON."""

    def findings(train, val=None):
        files = [SplitFiles(write(c, f"{name}.json"), None) for name, c in (("train", train), ("val", val)) if c]
        return check_dataset(*files).findings

    return findings
