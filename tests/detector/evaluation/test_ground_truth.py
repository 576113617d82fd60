"""What the protocols see of an annotation file."""

import json

import numpy as np
import pytest

from longshot.datasets import DataError, read_annotations
from longshot.detector.evaluation.ground_truth import COCO, LVIS, GroundTruth, choose_protocol


@pytest.fixture
def annotations_of(tmp_path):
    """dataset -> Annotations, through a file."""

    def read(dataset):
        sized = [{"width": 200, "height": 200, "file_name": "a.jpg"} | image for image in dataset["images"]]
        path = tmp_path / "annotations.json"
        path.write_text(json.dumps(dataset | {"images": sized}))
        return read_annotations(path)

    return read


@pytest.mark.parametrize("protocol", [LVIS, COCO], ids=["lvis", "coco"])
@pytest.mark.parametrize("seed", range(4))
def test_an_annotation_file_gives_the_ground_truth_that_plain_loops_give(
    protocol, seed, random_case, ground_truth_of, annotations_of
):
    dataset = random_case(seed, crowd=True).dataset
    found = GroundTruth.from_annotations(annotations_of(dataset), protocol)
    assert found.protocol == protocol
    for name, expected in list(ground_truth_of(dataset, protocol)._asdict().items())[1:]:
        np.testing.assert_array_equal(getattr(found, name), expected, err_msg=name)


def test_the_protocol_is_that_of_the_file_unless_it_is_named(random_case, annotations_of):
    dataset = random_case(0).dataset
    lvis = annotations_of(dataset)
    coco = annotations_of(dataset | {"images": [{"id": image["id"]} for image in dataset["images"]]})
    assert [choose_protocol("auto", file).name for file in (lvis, coco)] == ["lvis", "coco"]
    assert choose_protocol("coco", lvis) == COCO


def test_a_federated_protocol_refuses_a_file_without_lists_of_absent_classes(random_case, annotations_of):
    dataset = random_case(0).dataset
    coco = annotations_of(dataset | {"images": [{"id": image["id"]} for image in dataset["images"]]})
    with pytest.raises(DataError, match="the lvis protocol needs 'neg_category_ids' in the images"):
        GroundTruth.from_annotations(coco, LVIS)


def test_both_ends_of_a_size_range_belong_to_it():
    truth = GroundTruth.from_arrays(
        COCO,
        num_images=1,
        num_classes=1,
        image_index=[0, 0, 0],
        labels=[0, 0, 0],
        boxes_xywh=[[0, 0, 32, 32]] * 3,
        areas=[1024, 1024.5, 9216],
        crowd=[0, 0, 0],
        ignore=[0, 0, 0],
    )
    assert truth.num_objects.tolist() == [[3, 1, 3, 1]]  # all, small, medium, large
