import numpy as np

from datamodules.draws import AUGMENT, hash64, permutation, uniforms


def splitmix64(state):
    """The generator as published, one number at a time in Python integers."""
    mask = (1 << 64) - 1
    while True:
        state = (state + 0x9E3779B97F4A7C15) & mask
        word = state
        word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & mask
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & mask
        yield word ^ (word >> 31)


def test_draws_continue_splitmix64_from_the_hashed_key():
    state = 0
    for part in (3, -7, 2**40):
        state = next(splitmix64((state ^ next(splitmix64(part & (2**64 - 1)))) - 0x9E3779B97F4A7C15 & (2**64 - 1)))
    assert hash64(3, -7, 2**40).tolist() == [state]
    numbers = splitmix64(state)
    expected = [(next(numbers) >> 11) / 2**53 for _ in range(5)]
    assert uniforms(5, 3, -7, 2**40)[0].tolist() == expected


def test_first_number_of_the_published_generator():
    assert next(splitmix64(0)) == 0xE220A8397B1DCDAF  # the reference value for seed 0


def test_a_batch_equals_single_keys():
    index, epoch = np.array([5, 0, 9]), np.array([1, 1, 2])
    batch = uniforms(4, AUGMENT, 0, epoch, index)
    singles = [uniforms(4, AUGMENT, 0, int(e), int(i))[0] for e, i in zip(epoch, index, strict=True)]
    assert np.array_equal(batch, np.stack(singles))


def test_draws_are_even_and_unrelated_between_neighbours():
    draws = uniforms(3, AUGMENT, 0, np.repeat(np.arange(50), 400), np.tile(np.arange(400), 50))
    counts = np.stack([np.bincount((column * 9).astype(int), minlength=9) for column in draws.T])
    assert abs(counts / len(draws) - 1 / 9).max() < 0.01  # 4.5 standard deviations
    table = draws[:, 0].reshape(50, 400)
    assert abs(np.corrcoef(table[:-1].ravel(), table[1:].ravel())[0, 1]) < 0.03  # epoch to epoch
    assert abs(np.corrcoef(table[:, :-1].ravel(), table[:, 1:].ravel())[0, 1]) < 0.03  # image to image
    assert abs(np.corrcoef(draws.T) - np.eye(3)).max() < 0.03  # top, left and flip


def test_permutation_is_one_and_depends_on_every_part_of_the_key():
    orders = [permutation(100, 1, seed, epoch) for seed in range(3) for epoch in range(3)]
    assert all(sorted(order.tolist()) == list(range(100)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 9
    assert permutation(0, 1).tolist() == []
