"""A sample that takes the place of the test set, for what cannot afford all of it."""

import numpy as np
import pytest
from torch.testing import assert_close

from datamodules import CIFARDataModule, ImageNetDataModule
from datamodules.samplers import ShardSampler
from tests.loading import batches

pytestmark = pytest.mark.filterwarnings("ignore:Not the official")
SIZES = {"cifar10": 50, "imagenet": 12}  # of the whole test sets
NUMBER = 7


@pytest.fixture(params=SIZES)
def name(request):
    return request.param


@pytest.fixture
def ready(name, cifar10_root, imagenet_root):
    """``ready(num_test_images=7)`` is a data module after its setup."""

    def make(stage="test", **options):
        if name == "cifar10":
            data = CIFARDataModule("cifar10", str(cifar10_root), batch_size=4, **options)
        else:
            data = ImageNetDataModule(str(imagenet_root), 4, 0, image_size=32, **options)
        data.setup(stage)
        return data

    return make


def rows(data):
    return batches(data.test_dataloader())["index"].tolist()


@pytest.mark.parametrize("choice", ["random", "first"])
def test_the_sample_is_part_of_the_test_set_in_its_order(ready, choice):
    whole = batches(ready().test_dataloader())
    data = ready(num_test_images=NUMBER, test_choice=choice)
    sample = batches(data.test_dataloader())
    assert len(sample["index"]) == NUMBER
    assert sample["index"].tolist() == sorted(set(sample["index"].tolist()))
    assert (sample["index"].tolist() == list(range(NUMBER))) == (choice == "first")
    assert_close(sample, {key: value[sample["index"]] for key, value in whole.items()})
    assert_close(batches(data.predict_dataloader()), sample)


def test_only_the_seed_decides_a_random_sample(ready, name):
    sample = rows(ready(num_test_images=NUMBER))
    assert rows(ready(num_test_images=NUMBER, val_fraction=0.5)) == sample
    assert rows(ready("predict", num_test_images=NUMBER)) == sample
    assert rows(ready(num_test_images=NUMBER, seed=1)) != sample
    assert set(rows(ready(num_test_images=NUMBER - 1))) < set(sample)
    assert rows(ready(num_test_images=SIZES[name])) == list(range(SIZES[name]))
    counts = np.zeros(SIZES[name])
    for seed in range(300):  # every image is as likely as the others
        counts[ready(num_test_images=NUMBER, seed=seed)._test.rows] += 1
    chance = NUMBER / SIZES[name]
    assert np.abs(counts / 300 - chance).max() < 5 * np.sqrt(chance * (1 - chance) / 300)


@pytest.mark.parametrize("choice", ["random", "first"])
def test_processes_share_the_sample_out(ready, choice):
    images = ready(num_test_images=NUMBER, test_choice=choice)._test
    shares = [images.rows[list(ShardSampler(images, num_replicas=2, rank=rank))].tolist() for rank in (0, 1)]
    assert sorted(shares[0] + shares[1]) == rows(ready(num_test_images=NUMBER, test_choice=choice))


def test_training_and_validation_do_not_change(ready):
    plain, sampled = ready("fit"), ready("fit", num_test_images=NUMBER)
    for split in ("train", "val"):
        assert_close(*(batches(getattr(data, f"{split}_dataloader")()) for data in (plain, sampled)))


def test_mistakes(ready, name):
    with pytest.raises(ValueError, match="num_test_images must be at least 1, got 0"):
        ready(num_test_images=0)
    with pytest.raises(ValueError, match='test_choice must be "random" or "first", got \'last\''):
        ready(test_choice="last")
    size = SIZES[name]
    with pytest.raises(ValueError, match=f"num_test_images={size + 1}, but the test set has {size} images"):
        ready(num_test_images=size + 1)
    ready("fit", num_test_images=size + 1)  # nobody has asked for test images
