"""That the pipelines which are compared do the same work. Nothing here is timed."""

import numpy as np
import pytest
import torch

from longshot.tools.benchmarks import data


@pytest.fixture
def pipelines(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "FLIP", 0.0)  # the two sides draw at different random
    return data.pipelines_on(data.made_up_dataset(tmp_path, 3))


def test_pictures_are_as_large_as_photographs_of_coco(tmp_path):
    dataset = data.made_up_dataset(tmp_path, 4)
    assert dataset.sizes.tolist() == [[480, 640], [427, 640], [640, 480], [375, 500]]
    assert 100_000 < np.mean([path.stat().st_size for path in tmp_path.glob("*.jpg")]) < 200_000


def test_both_sides_give_the_network_the_same_batches(pipelines):
    ours, theirs = (list(pipelines[name]()) for name in (data.OURS_TO_NETWORK, data.REFERENCE_TO_NETWORK))
    assert len(ours) == len(theirs) == 2  # of two images each: batches straddle epochs
    for our_batch, (their_batch, _) in zip(ours, theirs, strict=True):
        assert our_batch.shape == their_batch.tensors.shape
        difference = (our_batch - their_batch.tensors).abs()
        # theirs rounds sizes down where ours rounds to the nearest: up to a pixel apart at the far side
        assert difference.mean() < 0.1 * their_batch.tensors.abs().mean()


def test_both_sides_have_the_same_targets(pipelines):
    for batch, (images, targets) in zip(pipelines[data.OURS](), pipelines[data.REFERENCE](), strict=True):
        for ours, theirs, seen, stored in zip(batch.targets, targets, batch.images, images, strict=True):
            scale = torch.tensor([seen.shape[2] / stored.shape[2], seen.shape[1] / stored.shape[1]] * 2)
            torch.testing.assert_close(ours.boxes, theirs["boxes"] * scale)
            assert torch.equal(ours.labels, theirs["labels"])


def test_table_and_target_by_hand():
    seconds = {data.OURS: 0.002, data.REFERENCE: 0.001, data.OURS_TO_NETWORK: 0.004, data.REFERENCE_TO_NETWORK: 0.006}
    _, ours, *_, theirs = data.table(seconds).splitlines()
    assert ours.split() == ["ours", "500.0", "2.00"]
    assert theirs.split()[-2:] == ["166.7", "6.00"]
    assert data.target(seconds).endswith("1.50, met")
    assert data.target({**seconds, data.OURS_TO_NETWORK: 0.0041}).endswith("1.46, NOT met")


def test_measuring_leaves_the_number_of_threads_alone():
    before = torch.get_num_threads()
    seconds = data.measure(2, repeats=1)
    assert torch.get_num_threads() == before
    assert list(seconds) == [data.OURS, data.REFERENCE, data.OURS_TO_NETWORK, data.REFERENCE_TO_NETWORK]
    assert all(spent > 0 for spent in seconds.values())
