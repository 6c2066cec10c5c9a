"""An image ends the same in any batch: in other company, padded, in parts, beside images without an answer."""

import pytest
import torch
from torch.testing import assert_close

from tests.methods.toy_attacks import (
    ATTACKS,
    COUNT_THE_CLEAN_IMAGE,
    HOPELESS,
    LINEAR,
    assert_same_row,
    each_attack,
    each_walk,
    one_of_each,
)
from tests.methods.toy_models import (
    CLASSES,
    PIXELS,
    SIDE,
    NaNs,
    Recorder,
    picture_batch,
    small_conv_net,
)


@each_attack
def test_a_batch_equals_its_images_bit_for_bit(name):
    images, labels = picture_batch(6)
    labels[2] = (labels[2] + 1) % CLASSES
    ids = torch.tensor([5, -3, 2**40, 0, 11, 7])
    attack = ATTACKS[name](max_queries=120 if name == "nes" else 50, seed=4)
    together = attack(LINEAR, images, labels, image_ids=ids)
    assert 0 < together.success.sum() < 5
    for split in ([[0], [1], [2], [3], [4], [5]], [[3, 0], [5, 1, 4, 2]]):
        for rows in split:
            part = attack(LINEAR, images[rows], labels[rows], image_ids=ids[rows])
            for i, row in enumerate(rows):
                assert_same_row(part, i, together, row)


DRAWS = {
    "ppba": (1, 24),
    "ppba_3": (3, 24),
    "ppba_linf": (1, 24),
    "nes": (5, PIXELS),
    "nes_lf": (5, 24),
    "bandits": (48,),
} | {
    "bandits_lf": (24,),
    "simba": (1,),
}


@each_attack
def test_a_batch_equals_its_images_with_given_draws(name):
    images, labels = picture_batch(5)
    draw = torch.rand if "ppba" in name or name == "simba" else torch.randn
    draws = draw(12, 5, *DRAWS[name], dtype=torch.float64)
    attack = ATTACKS[name]()
    together = attack(LINEAR, images, labels, draws=draws)
    for i in range(5):
        single = attack(LINEAR, images[i, None], labels[i, None], draws=draws[:, i, None])
        assert_same_row(single, 0, together, i)
    assert len(together.history["loss"]) == 12  # the end of the draws is the end of the attack
    assert not together.success.all()


@each_walk
def test_seeds_and_ids_draw_differently(name):
    images, labels = picture_batch(1)
    attack = ATTACKS[name]
    run = lambda seed, i: attack(max_queries=31, seed=seed)(HOPELESS, images, 0 * labels, image_ids=torch.tensor([i]))  # noqa: E731
    advs = [run(seed, i).adv for seed, i in ((0, 0), (1, 0), (0, 1), (2**40, 0))]
    assert torch.equal(run(0, 0).adv, advs[0])
    for a in range(4):
        assert all(not torch.equal(advs[a], advs[b]) for b in range(a))


@pytest.mark.parametrize("name", ["ppba_3", "nes_lf", "bandits", "simba"])
def test_a_real_network_in_company_and_alone(name):
    network = small_conv_net()
    images = torch.rand(10, 3, SIDE, SIDE)
    with torch.no_grad():
        scores, labels = network(images), network(images).argmax(1)
        alone = torch.cat([network(image[None]) for image in images])
    assert_close(alone, scores, rtol=1e-6, atol=1e-6)
    attack = ATTACKS[name](max_queries=40, pad_batch=True)  # without, rounding tells them apart, on some machines
    together = attack(network, images, labels)
    assert together.success.any()
    for i in (0, 4, 9):
        assert_same_row(attack(network, images[i, None], labels[i, None], image_ids=torch.tensor([i])), 0, together, i)


@pytest.mark.parametrize(("pad", "limit", "sizes"), [(True, None, {8}), (5, None, {5}), (True, 3, {3}), (2, 3, {2})])
@pytest.mark.parametrize("name", ["ppba_3", "nes"])
def test_padding_keeps_the_size_and_is_not_counted(name, pad, limit, sizes):
    images, labels = picture_batch(6)
    model = Recorder(LINEAR)
    if limit:
        model.max_batch = limit
    padded = ATTACKS[name](max_queries=40, pad_batch=pad)(model, images, labels)
    plain = ATTACKS[name](max_queries=40)(LINEAR, images, labels)
    assert set(model.sizes) == sizes
    for i in range(6):
        assert_same_row(padded, i, plain, i)


@one_of_each
def test_a_black_box_that_takes_few_images_at_once(name):
    images, labels = picture_batch(5)
    model = Recorder(LINEAR)
    model.max_batch = 3
    parts = ATTACKS[name](max_queries=40)(model, images, labels)
    whole = ATTACKS[name](max_queries=40)(LINEAR, images, labels)
    assert max(model.sizes) == 3
    for i in range(5):
        assert_same_row(parts, i, whole, i)


@each_walk
def test_not_a_number_fails_its_image_and_no_other(name):
    images, labels = picture_batch(4)
    others = [0, 2, 3]
    attack = ATTACKS[name](max_queries=90)
    without = attack(LINEAR, images[others], labels[others], image_ids=torch.tensor(others))
    for distance, least in ((0.0, 0), (1e-9, 1), (0.25, 2)):  # the clean image; the first step; later
        model = Recorder(NaNs(LINEAR, images, 1, distance))
        result = attack(model, images, labels)
        for i, row in enumerate(others):
            assert_same_row(without, i, result, row)
        assert result.failed.tolist() == [False, True, False, False]
        assert not (result.success | result.success_uint8 | result.skipped)[1]
        steps, odd = divmod(result.queries[1].item() - (name in COUNT_THE_CLEAN_IMAGE), attack.step_queries)
        assert odd == 0
        assert steps >= least if distance == 0.25 else steps == least
        assert ((result.adv >= 0) & (result.adv <= 1)).all()  # false for NaN
        assert result.l2.isfinite().all()
        assert result.l2_unclipped.isfinite().all()
        assert all(image.isfinite().all() for image in model.images)  # the model is never shown such an image
