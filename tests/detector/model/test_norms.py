import pytest

from detector.model.norms import group_norm


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(2048, 32), (256, 32), (96, 32), (64, 32), (48, 16), (32, 16), (16, 8), (6, 2), (7, 1), (1, 1)],
)
def test_group_norm_has_32_groups_or_as_many_as_leave_two_channels_in_each(channels, groups):
    assert group_norm(channels).num_groups == groups
