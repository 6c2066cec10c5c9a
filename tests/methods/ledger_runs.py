"""Small attacks with a ledger, for tests that kill them and look into their files."""

import json
from functools import partial

import pytest
import torch

from lit_methods.ppba import NES, Bandits, Ledger, PPBAAttack, SimBA
from tests.methods.toy_models import CLASSES, Linear, low_frequencies, picture_batch

LINEAR = Linear()
HOPELESS = Linear(lead=12.0)
LOW = low_frequencies()
SMALL = {  # some images succeed, some do not
    "ppba": partial(PPBAAttack, LOW, rho=0.1, eps=1.5, max_queries=16),
    "ppba_3": partial(PPBAAttack, LOW, rho=0.1, eps=1.5, max_queries=31, n_samples=3),
    "nes": partial(NES, LOW, eps=1.5, lr=0.4, max_queries=60),
    "bandits": partial(Bandits, LOW, eps=1.5, lr=0.3, max_queries=16),
    "simba": partial(SimBA, LOW, eps=1.5, step=0.4, max_queries=16),
}
each_attack = pytest.mark.parametrize("name", SMALL)


def puzzle():
    """Five images, one of which is wrong from the start."""
    images, labels = picture_batch(5)
    labels[3] = (labels[3] + 1) % CLASSES
    return images, labels


def run(attack, model, path, rows=range(5), rank=0, context=None, puzzle=puzzle, **options):
    """Attack some of the images, with a ledger of this process."""
    images, labels = puzzle()
    ids = torch.tensor(list(rows), dtype=torch.int64)
    with Ledger(path, context, rank) as ledger:
        return attack(model, images[ids], labels[ids], image_ids=ids + 100, ledger=ledger, **options)


def strict(path):
    """The lines of a file, none of them with NaN or Infinity, which are no JSON."""

    def refuse(word):
        raise AssertionError(f"{word} in {path.name}")

    text = path.read_text()
    assert text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]
