"""One trial is a function of its job; its images go the way of the datamodule's."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from datamodules import CIFARDataModule
from lit_methods.bpe_mip import trial as trial_module, trial_images
from lit_methods.bpe_mip.search_space import Genotype, Recipe, genotype_from_sample28
from lit_methods.bpe_mip.trial import Trials, build_network, trial_loss
from lit_methods.bpe_mip.trial_images import LabelledTensor, TrialImages
from lit_methods.functional.draws import permutation
from tests.fake_trials import same_state

RECIPE = Recipe(epochs=2, batch_size=32, lr=0.1, layers=3, fp=32, channels=4, cutout=0, image_size=8)
MEAN, STD = [0.5, 0.4, 0.3], [0.25, 0.2, 0.3]


def architecture(first: int = 3, second: int = 2) -> Genotype:
    """Two operations per cell."""
    return genotype_from_sample28(([first, second, *[7] * 12]) * 2)


def pictures(count: int, side: int = 32, seed: int = 0) -> LabelledTensor:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, side, side), generator=generator).to(torch.uint8)
    return LabelledTensor(images, torch.arange(count) % 2)


def few(count: int = 65, val: int = 10, **options) -> TrialImages:
    return TrialImages(pictures(count), pictures(val, seed=1), MEAN, STD, **options)


@pytest.fixture
def digits() -> TrialImages:
    data = CIFARDataModule("digits", class_subset=[0, 1, 2], val_fraction=0.3)
    data.setup("fit")
    train, val = (LabelledTensor(*part[:2]) for part in (data.training_tensors(), data.validation_tensors()))
    return TrialImages(train, val, data.mean, data.std, data.flips)


# -- a trial -----------------------------------------------------------------------------------------------------------


def test_a_trial_neither_reads_nor_changes_the_global_random_state():
    one, other = architecture(), architecture(0, 5)
    trials = Trials(few(), num_classes=2)
    first = trials.train(one, RECIPE)
    torch.manual_seed(77)
    before = torch.get_rng_state()
    trials.train(other, RECIPE, seed=4)
    again = trials.train(one, RECIPE)
    assert torch.equal(torch.get_rng_state(), before)
    assert again.accuracies == first.accuracies
    assert same_state(again.weights, first.weights)


def test_seed_recipe_and_genotype_make_another_network():
    trials = Trials(few(), num_classes=2)
    first = trials.train(architecture(), RECIPE)
    for other in (
        trials.train(architecture(), RECIPE, seed=1),
        trials.train(architecture(), RECIPE.replace(lr=0.05)),
        trials.train(architecture(), RECIPE.replace(cutout=4)),
    ):
        assert not same_state(other.weights, first.weights)
    assert trials.train(architecture(0, 2), RECIPE).weights.keys() != first.weights.keys()


def test_an_estimate_is_made_once_for_a_genotype_and_recipe(monkeypatch):
    trials, made, real = Trials(few(), RECIPE.replace(epochs=1), num_classes=2), [], Trials.train

    def train(self, genotype, recipe, seed=0, watch=None):
        made.append((genotype, recipe))
        return real(self, genotype, recipe, seed, watch)

    monkeypatch.setattr(Trials, "train", train)
    first = trials(architecture())
    assert trials(architecture()) == first == real(trials, architecture(), RECIPE.replace(epochs=1)).accuracy
    assert len(made) == 1
    trials(architecture(), RECIPE)
    trials(architecture(0, 0))
    assert len(made) == 3


def test_an_estimate_needs_a_recipe():
    with pytest.raises(ValueError, match=r"recipe: missing; give Trials\(images, recipe\)"):
        Trials(few())(architecture())


def test_a_trial_learns_digits(digits):
    trial = Trials(digits, num_classes=3).train(architecture(), RECIPE.replace(epochs=3, batch_size=16))
    assert trial.accuracy > 0.6  # a third is chance
    assert trial.accuracy == max(trial.accuracies)
    assert trial.images_per_second > 0
    assert trial.seconds > 0


def test_drop_path_grows_and_the_rate_falls_along_the_cosine(monkeypatch):
    seen: list[tuple[float, float]] = []
    real = trial_module.SGD.step

    def step(self, *args, **kwargs):
        network = networks[-1]
        seen.append((self.param_groups[0]["lr"], float(network.drop_path_prob)))
        return real(self, *args, **kwargs)

    networks, build = [], Trials.build
    monkeypatch.setattr(trial_module.SGD, "step", step)
    monkeypatch.setattr(Trials, "build", lambda *args: networks.append(build(*args)) or networks[-1])
    Trials(few(), num_classes=2).train(architecture(), RECIPE.replace(epochs=4, batch_size=65))
    assert [p for _, p in seen] == pytest.approx([0.0, 0.05, 0.1, 0.15])
    assert [lr for lr, _ in seen] == pytest.approx([0.05 * (1 + math.cos(math.pi * e / 4)) for e in range(4)])


def test_gradients_are_clipped_to_a_norm_of_five(monkeypatch):
    norms = []
    real = trial_module.SGD.step

    def step(self, *args, **kwargs):
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.stack([grad.norm() for grad in grads]).norm()))
        return real(self, *args, **kwargs)

    monkeypatch.setattr(trial_module.SGD, "step", step)
    monkeypatch.setattr(trial_module, "trial_loss", lambda *args: 1000 * trial_loss(*args))
    Trials(few(), num_classes=2).train(architecture(), RECIPE.replace(epochs=1))
    assert norms == pytest.approx([5.0] * len(norms), rel=1e-3)


def test_a_loss_that_is_not_finite_ends_the_trial(monkeypatch):
    monkeypatch.setattr(trial_module, "trial_loss", lambda logits, *args: logits.sum() * math.nan)
    with pytest.raises(FloatingPointError, match=r"not finite in epoch 0: lr=0.1 may be too high"):
        Trials(few(), num_classes=2).train(architecture(), RECIPE)


def test_weights_are_those_of_the_best_epoch(monkeypatch):
    found, states = iter([0.2, 0.9, 0.9, 0.4]), []

    def accuracy(self, network, size):
        states.append({name: value.clone() for name, value in network.state_dict().items()})
        return next(found)

    monkeypatch.setattr(Trials, "accuracy", accuracy)
    trial = Trials(few(), num_classes=2).train(architecture(), RECIPE.replace(epochs=4))
    assert trial.accuracy == 0.9
    assert same_state(trial.weights, states[1])  # the first of equals
    assert not same_state(trial.weights, states[3])


def test_somebody_may_look_in_after_every_step():
    class Stop(Exception):
        pass

    calls = []

    def watch():
        calls.append(1)
        if len(calls) == 2:
            raise Stop

    with pytest.raises(Stop):
        Trials(few(), num_classes=2).train(architecture(), RECIPE, watch=watch)
    assert len(calls) == 2


def test_half_precision_is_full_precision_on_a_cpu():
    trials = Trials(few(), num_classes=2)
    one, other = (trials.train(architecture(), RECIPE.replace(fp=fp, epochs=1)) for fp in (16, 32))
    assert same_state(one.weights, other.weights)


def test_accuracy_is_that_of_the_evaluated_network():
    trials = Trials(few(val=30), num_classes=2)
    network = trials.build(architecture(), RECIPE)
    found = trials.accuracy(network, 8)
    assert network.training
    network.eval()
    image, label = next(iter(trials.images.validation(8)))
    assert found == float((network(image)[0].argmax(1) == label).float().mean())


def test_the_auxiliary_head_is_in_the_loss_with_its_weight():
    logits, auxiliary, label = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    one, other = (torch.nn.functional.cross_entropy(x, label) for x in (logits, auxiliary))
    assert torch.allclose(trial_loss(logits, auxiliary, label), one + 0.4 * other)
    assert torch.equal(trial_loss(logits, None, label), one)


def test_a_network_has_what_its_recipe_says():
    network = build_network(architecture(), RECIPE.replace(layers=5, channels=6), num_classes=7)
    assert (len(network.cells), network.classifier.out_features) == (5, 7)


# -- images ------------------------------------------------------------------------------------------------------------


def test_an_epoch_shows_each_image_once_but_a_last_single_one():
    images = few(65)
    batches = list(images.epoch(RECIPE, seed=0, epoch=0))
    assert [len(label) for _, label in batches] == [32, 32]  # 65 = 2 x 32 + 1
    assert [len(label) for _, label in few(66).epoch(RECIPE, seed=0, epoch=0)] == [32, 32, 2]
    labels = torch.cat([label for _, label in batches])
    order = permutation(65, trial_images._ORDER, 0, 0)[:64]
    assert torch.equal(labels, images.train.labels[torch.from_numpy(order)])


def test_epochs_and_seeds_differ_and_come_again():
    images = few(32)

    def first(seed: int, epoch: int) -> Tensor:
        return next(iter(images.epoch(RECIPE, seed, epoch)))[0]

    assert torch.equal(first(0, 0), first(0, 0))
    assert not torch.equal(first(0, 0), first(0, 1))
    assert not torch.equal(first(0, 0), first(1, 0))


def test_how_many_are_prepared_at_once_changes_nothing(monkeypatch):
    images = few(64)
    whole = [image for image, _ in images.epoch(RECIPE, 0, 0)]
    monkeypatch.setattr(trial_images, "PREPARED", 32)
    assert all(torch.equal(a, b) for a, (b, _) in zip(whole, images.epoch(RECIPE, 0, 0), strict=True))


@pytest.mark.parametrize("flip", [True, False])
def test_augmentation_is_crop_flip_resize_normalise_cutout(flip):
    """By Pillow, picture by picture, in the order of the official code."""
    images, recipe = few(20, flip=flip), RECIPE.replace(image_size=16, cutout=6)
    found = next(iter(images.epoch(recipe, seed=3, epoch=2)))[0]
    positions = permutation(20, trial_images._ORDER, 3, 2)
    draws = trial_images.uniforms(5, trial_images._AUGMENT, 3, np.full(20, 2), positions)
    for picture, position, draw in zip(found, positions, draws, strict=True):
        padded = np.pad(images.train.images[position].permute(1, 2, 0).numpy(), ((4, 4), (4, 4), (0, 0)))
        top, left = (int(d * 9) for d in draw[:2])
        cut = padded[top : top + 32, left : left + 32]
        cut = cut[:, ::-1] if flip and draw[2] < 0.5 else cut
        small = np.array(Image.fromarray(np.ascontiguousarray(cut)).resize((16, 16), Image.Resampling.BILINEAR))
        wanted = torch.from_numpy((small / 255 - MEAN) / STD).permute(2, 0, 1)
        y, x = (int(d * 16) for d in draw[3:])
        wanted[:, max(0, y - 3) : y + 3, max(0, x - 3) : x + 3] = 0
        assert torch.equal(picture == 0, wanted == 0)
        assert torch.allclose(picture.double(), wanted, atol=1e-5)


def test_augmentation_equals_the_datamodules_own(monkeypatch):
    """The same draws given, the way of ``CIFARDataModule`` with its options ends at the same numbers."""
    data = CIFARDataModule("digits", image_size=16, cutout=6, batch_size=32)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    train = LabelledTensor(*data.training_tensors()[:2])
    rows = data.training_tensors()[2]
    wanted = data.on_after_batch_transfer(batch, 0)["image"]
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
    positions = torch.tensor([int((rows == index).nonzero()) for index in batch["index"]])
    from datamodules import cifar

    monkeypatch.setattr(trial_images, "permutation", lambda *key: positions.numpy())
    monkeypatch.setattr(
        trial_images,
        "uniforms",
        lambda n, what, seed, epochs, at: cifar.uniforms(n, cifar.AUGMENT, seed, epochs, rows.numpy()[at]),
    )
    images = TrialImages(train, train, data.mean, data.std, data.flips)
    found = next(iter(images.epoch(RECIPE.replace(image_size=16, cutout=6), seed=0, epoch=0)))[0]
    assert torch.allclose(found, (wanted - mean) / std, atol=1e-5)
    assert (found == 0).all(1).any()  # something was cut out, exactly


def test_validation_resizes_once_for_each_size(monkeypatch):
    images, real, sizes = few(val=10), trial_images.resize_batch, []
    monkeypatch.setattr(trial_images, "resize_batch", lambda x, size: sizes.append(size) or real(x, size))
    for size in (8, 16, 8, 32):
        batches = list(images.validation(size, batch_size=4))
        assert [len(label) for _, label in batches] == [4, 4, 2]
        assert batches[0][0].shape == (4, 3, size, size)
    assert sizes == [8, 16]


@pytest.mark.parametrize(("train", "val", "name"), [(0, 4, "train"), (4, 0, "val")])
def test_no_images_are_refused(train, val, name):
    with pytest.raises(ValueError, match=f"{name} has no images"):
        TrialImages(pictures(train), pictures(val), MEAN, STD)


def test_the_fingerprint_is_that_of_the_pictures():
    one, same, other, shorter = few(), few(), few(val=11), few(64)
    assert one.fingerprint == same.fingerprint
    assert len({one.fingerprint, other.fingerprint, shorter.fingerprint}) == 3
    assert one.to("cpu").fingerprint == one.fingerprint
