"""What the tests of callbacks share."""

import pytest

from tests.small_recipes import without_figures


@pytest.fixture
def quick_trainer(make_trainer):
    """``make_trainer`` for tests that look at no figure."""
    with without_figures():
        yield make_trainer
