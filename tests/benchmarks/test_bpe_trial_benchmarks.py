"""A trial on images held as one tensor beside the usual way: pictures through a DataLoader, torch's own layers.

python -m pytest tests/benchmarks/test_bpe_trial_benchmarks.py -m benchmark -s
"""

import os

import pytest
import torch
from PIL import Image
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from lit_methods.bpe_mip.functional import drop_path_at
from lit_methods.bpe_mip.search_space import BPE1, Recipe, random_genotype
from lit_methods.bpe_mip.trial import CLIP, MOMENTUM, WEIGHT_DECAY, Trials, trial_loss
from lit_methods.bpe_mip.trial_images import LabelledTensor, TrialImages
from tests.benchmarks.side_by_side import side_by_side
from tests.methods.test_bpe_depthwise import plain

pytestmark = pytest.mark.benchmark

MEAN, STD = [0.49, 0.48, 0.45], [0.25, 0.24, 0.26]
DIGITS = Recipe(epochs=1, batch_size=32, lr=0.1, layers=3, fp=32, channels=4, cutout=0, image_size=8)


class Pictures(Dataset):
    """What torchvision's CIFAR10 does with a picture."""

    def __init__(self, images, labels, size):
        side = images.shape[-1]
        self.images, self.labels = images.permute(0, 2, 3, 1).numpy(), labels.tolist()
        steps = [transforms.RandomCrop(side, padding=4), transforms.RandomHorizontalFlip()]
        steps += [transforms.Resize(size)] if size != side else []
        self.transform = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.transform(Image.fromarray(self.images[i])), self.labels[i]


def train(network, batches, recipe, **options):
    """An epoch as in any training script."""
    network.drop_path_prob = drop_path_at(0, recipe.epochs)
    optimizer = torch.optim.SGD(
        network.parameters(), recipe.lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, **options
    )
    for image, label in batches:
        optimizer.zero_grad()
        trial_loss(*network(image), label).backward()
        clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()


@pytest.mark.parametrize(("name", "recipe", "side"), [("BPE-1", BPE1, 32), ("digits", DIGITS, 8)])
def test_images_per_second(name, recipe, side):
    """512 random pictures, one epoch; the goal is 2 times on a CPU with BPE-1, 10 on a GPU."""
    generator = torch.Generator().manual_seed(0)
    n = 512
    pictures = torch.randint(256, (n, 3, side, side), dtype=torch.uint8, generator=generator)
    labels = torch.randint(10, (n,), generator=generator)
    train_set = LabelledTensor(pictures, labels)
    trials = Trials(TrialImages(train_set, LabelledTensor(pictures[:2], labels[:2]), MEAN, STD))
    recipe = Recipe(**{**recipe.to_dict(), "epochs": 1})
    genotype = random_genotype(torch.Generator().manual_seed(1))
    loader = DataLoader(Pictures(pictures, labels, recipe.image_size), recipe.batch_size, shuffle=True, num_workers=0)
    workers = DataLoader(loader.dataset, recipe.batch_size, shuffle=True, num_workers=2)
    quick = trials.build(genotype, recipe)
    usual = plain(quick).to(memory_format=torch.contiguous_format)
    title = f"{name}, {n} images"
    print(f"\nload {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, {torch.get_num_threads()} threads")

    side_by_side(
        f"{title}: plain loader and network against a trial",
        lambda: train(usual, loader, recipe),
        lambda: trials.train(genotype, recipe),
        repeats=3,
    )
    side_by_side(
        f"{title}: the loader alone", lambda: list(loader), lambda: list(trials.images.epoch(recipe, 0, 0)), repeats=3
    )
    side_by_side(
        f"{title}: the loader alone, two workers",
        lambda: list(workers),
        lambda: list(trials.images.epoch(recipe, 0, 0)),
        repeats=3,
    )
    ready, batches = list(loader)[:3], list(trials.images.epoch(recipe, 0, 0))[:3]
    side_by_side(
        f"{title}: the network alone, 3 batches",
        lambda: train(usual, ready, recipe),
        lambda: train(quick, batches, recipe, fused=True),
        repeats=3,
    )
