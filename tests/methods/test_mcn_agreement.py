"""Whether a box and a mask mean the same thing."""

import pytest
import torch

from lit_methods.mcn.agreement import agreement


@pytest.mark.parametrize(
    ("box", "expected"),
    [([2, 1, 6, 3], 1), ([2, 1, 6, 5], 0.5), ([6, 1, 8, 3], 0), ([torch.nan, 1, 6, 3], 0), ([torch.inf] * 4, 0)],
)
def test_agreement_is_the_overlap_with_the_extent_of_the_mask(box, expected):
    mask = torch.zeros(6, 8, dtype=torch.bool)
    mask[1, 2] = mask[2, 5] = True  # its extent is 2, 1, 6, 3, however little of it is covered
    assert agreement(torch.tensor(box), mask) == expected
    assert agreement(torch.tensor(box), mask & False) == 0
