"""The three searchers of BPE against the official code's arithmetic, and what they find on a table."""

import io

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lit_methods.bpe_mip.search_space import NODE_EDGES, genotype_from_sample28, sample28_from_genotype
from lit_methods.bpe_mip.searchers import RandomSearch, RegularizedEvolution, ReinforceSearch

SEARCHERS = [RandomSearch, ReinforceSearch, lambda **kw: RegularizedEvolution(8, 3, **kw)]


def load(vectors, name):
    with np.load(vectors / "bpe_mip" / f"{name}.npz") as file:
        return dict(file)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


TABLE = torch.rand(28, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


def looked_up(sample):
    """Accuracy of a sample: the mean of 28 entries of a table."""
    return float(TABLE.gather(1, torch.as_tensor(sample)[:, None]).mean())


def estimate(genotype):
    return looked_up(sample28_from_genotype(genotype))


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# REINFORCE


def test_reinforce_follows_the_reference_step_by_step(vectors):
    official = load(vectors, "reinforce")
    search = ReinforceSearch(lr=float(official["lr"]), momentum=float(official["momentum"]))
    assert search.logits.dtype == torch.float64
    for t, uniforms in enumerate(official["uniforms"]):
        sample = search.ask(uniforms)
        assert sample.tolist() == official["actions"][t].tolist()
        search.tell(sample, official["rewards"][t])
        assert search.baseline == pytest.approx(official["baseline"][t], abs=1e-10)
        assert_close(search.logits, torch.from_numpy(official["logits"][t]), rtol=0, atol=1e-10)
    assert np.array_equal(search.actions, official["actions"])
    assert np.array_equal(search.rewards, official["rewards"])
    policies = torch.from_numpy(official["logits"]).softmax(2)
    assert_close(search.probabilities, policies, rtol=0, atol=1e-10)


def test_reinforce_slims_as_officially(vectors):
    official = load(vectors, "slimming")
    search = ReinforceSearch()
    for actions, reward in zip(official["actions"], official["rewards"], strict=True):
        search.tell(actions, reward)
    assert_close(search.probabilities, torch.from_numpy(official["probabilities"]), rtol=0, atol=1e-10)
    assert search.slimmed() == official["slim_sample"].tolist()


def test_first_reward_moves_nothing():
    search = ReinforceSearch()
    search.tell([3] * 28, 0.7)
    assert search.baseline == pytest.approx(0.7, abs=1e-12)
    assert search.logits.abs().max() < 1e-12
    search.tell([3] * 28, 0.9)
    assert (search.logits.argmax(1) == 3).all()


def test_a_uniform_beyond_the_rounded_sum_is_the_last_operation():
    almost_one = np.full(28, np.nextafter(1.0, 0.0))
    assert ReinforceSearch().ask(almost_one).tolist() == [6] * 28
    assert ReinforceSearch().ask(np.zeros(28)).tolist() == [0] * 28


def test_failed_estimates_are_drawn_again_and_count():
    answers = iter([0.001, 0.5, 0.0, 0.6, 0.0005, 0.7])
    search = ReinforceSearch()
    asked = []
    genotype, accuracy = search.run(lambda g: asked.append(g) or next(answers), budget=6)
    assert [told for _, told in search.history] == [0.5, 0.6, 0.7]
    assert len(asked) == 6
    assert (genotype, accuracy) == (asked[5], 0.7)


def test_a_search_in_which_nothing_trains_ends():
    with pytest.raises(ValueError, match=r"at most 0.001 in each of 5 estimates"):
        ReinforceSearch().run(lambda genotype: 0.0, budget=5)


# evolution


def test_evolution_follows_the_reference_step_by_step(vectors):
    official = load(vectors, "evolution")
    table, offset = torch.from_numpy(official["fitness_table"]), float(official["fitness_offset"])
    search = RegularizedEvolution()
    samples = [torch.from_numpy(sample) for sample in official["initial"]]
    for step in range(100):
        if step >= 50:
            i = step - 50
            chosen = search.population
            draws = official["tournament_draws"][i]
            choice = official["mutation_position"][i], official["mutation_choice"][i]
            samples.append(search.ask(draws, *choice))
            assert samples[-1].tolist() == official["children"][i].tolist()
            changed = samples[-1] != samples[official["parent_index"][i]]
            assert official["parent_index"][i] in chosen
            assert changed.nonzero().tolist() == [[official["mutation_position"][i]]]
        accuracy = offset + float(table.gather(1, samples[step][:, None]).sum())
        assert accuracy == pytest.approx(official["accuracy"][step], abs=1e-12)
        search.tell(samples[step], official["accuracy"][step])
    assert search.population == official["final_population"].tolist()
    best = official["accuracy"].argmax()
    assert search.best()[1] == official["accuracy"][best]
    assert torch.equal(search.best()[0], samples[best])


def test_first_of_equal_maxima_is_the_parent():
    search = RegularizedEvolution(population_size=3, tournament_size=3)
    for operation, accuracy in ((0, 0.5), (1, 0.9), (2, 0.9)):
        search.tell([operation] * 28, accuracy)
    assert search.ask([0, 2, 1], 0, 0).tolist() == [0] + [2] * 27
    assert search.ask([1, 2, 0], 0, 0).tolist() == [0] + [1] * 27


def test_child_gets_one_of_the_other_operations():
    search = RegularizedEvolution(population_size=1, tournament_size=1)
    search.tell([3] * 28, 0.5)
    children = [search.ask([0], 5, choice).tolist() for choice in range(6)]
    assert [child[5] for child in children] == [0, 1, 2, 4, 5, 6]
    drawn = [search.ask() for _ in range(400)]
    assert all((child != 3).sum() == 1 for child in drawn)
    assert {int((child != 3).nonzero()) for child in drawn} == {*range(28)}
    assert search.history[0][0].tolist() == [3] * 28


def test_the_oldest_dies():
    search = RegularizedEvolution(population_size=3, tournament_size=2)
    populations = []
    for accuracy in (0.9, 0.1, 0.2, 0.3, 0.4):
        search.tell(search.ask(), accuracy)
        populations.append(search.population)
    assert populations == [[0], [0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4]]
    assert search.best()[1] == 0.9


def test_what_is_asked_before_the_answers_is_random():
    search = RegularizedEvolution(population_size=2, tournament_size=2)
    asked = [search.ask() for _ in range(5)]
    assert len({tuple(sample.tolist()) for sample in asked}) == 5
    for sample in asked:
        search.tell(sample, 0.5)
    assert min(int((search.ask() != asked[i]).sum()) for i in (3, 4)) == 1


def test_evolution_offers_slim_forms_of_its_best():
    search = RegularizedEvolution(4, 2, generator=seeded())
    search.run(estimate, budget=6)
    slim, best = search.slimmed_candidates(n=5), search.best()[0]
    assert slim.shape == (5, 28)
    for edges in NODE_EDGES:
        assert ((slim[:, edges] != 7).sum(1) == 2).all()
    assert ((slim == best) | (slim == 7)).all()
    assert search.slimmed_candidates().shape == (10, 28)


# random search


def test_random_search_tells_in_order_and_keeps_the_first_best():
    search = RandomSearch(generator=seeded())
    answers = [0.2, 0.9, 0.1, 0.9]
    asked = []
    genotype, accuracy = search.run(lambda g: asked.append(g) or answers[len(asked) - 1], budget=4)
    assert [told for _, told in search.history] == answers
    assert [genotype_from_sample28(sample) for sample, _ in search.history] == asked
    assert (genotype, accuracy) == (asked[1], 0.9)
    assert len({genotype.key() for genotype in asked}) == 4
    assert all(len(node) == 2 for node in genotype.normal + genotype.reduce)


# all of them


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("searcher", [ReinforceSearch, RegularizedEvolution])
def test_search_finds_better_than_the_mean_of_random(searcher, seed):
    space = torch.randint(7, (1000, 28), generator=seeded(9))
    random = torch.tensor([looked_up(sample) for sample in space])
    search = searcher(generator=seeded(seed))
    genotype, accuracy = search.run(estimate, budget=100)
    assert len(search.history) == 100
    assert accuracy == estimate(genotype) > random.mean() + random.std()


@pytest.mark.parametrize("searcher", [lambda **kw: ReinforceSearch(lr=3.0, **kw), RegularizedEvolution])
def test_searcher_learns(searcher):
    search = searcher(generator=seeded())
    search.run(estimate, budget=400)
    told = torch.tensor([accuracy for _, accuracy in search.history])
    assert told[-50:].mean() > told[:50].mean() + 2 * told[:50].std()


@pytest.mark.parametrize("searcher", SEARCHERS)
@pytest.mark.parametrize("before", [0, 1, 5, 20])
def test_resumed_search_is_the_uninterrupted_one(searcher, before):
    whole, first, second = (searcher(generator=seeded(seed)) for seed in (0, 0, 1))
    whole.run(estimate, budget=before + 20)
    if before:
        first.run(estimate, budget=before)
    second.load_state_dict(through_a_file(first.state_dict()))
    if before:
        first.run(estimate, budget=3)  # does not disturb what was saved
    second.run(estimate, budget=20)
    states = [through_a_file(search.state_dict()) for search in (whole, second)]
    for name, value in states[0].items():
        equal = torch.equal(value, states[1][name]) if isinstance(value, torch.Tensor) else value == states[1][name]
        assert equal, name
    assert torch.equal(whole.ask(), second.ask())


@pytest.mark.parametrize("searcher", SEARCHERS)
def test_questions_depend_on_answers_only(searcher):
    one, other = (searcher(generator=seeded()) for _ in range(2))
    asked = [[search.ask() for _ in range(12)] for search in (one, other)]
    assert all(torch.equal(a, b) for a, b in zip(*asked, strict=True))
    for sample in asked[0]:
        one.tell(sample, looked_up(sample))
        other.tell(sample, looked_up(sample))
        sample.fill_(0)  # what was told stays
    assert torch.equal(one.ask(), other.ask())
    assert len({tuple(sample.tolist()) for sample, _ in one.history}) == 12


@pytest.mark.parametrize("searcher", SEARCHERS)
def test_asked_samples_are_28_int64_and_the_global_generator_stays(searcher):
    before = torch.random.get_rng_state()
    sample = searcher().ask()
    assert sample.shape == (28,)
    assert sample.dtype == torch.int64
    assert torch.equal(sample, searcher().ask())
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("searcher", SEARCHERS)
@pytest.mark.parametrize("accuracy", [float("nan"), -0.1, 1.1, 97.3])
def test_what_is_no_accuracy_is_refused(searcher, accuracy):
    search = searcher()
    with pytest.raises(ValueError, match=r"is not in \[0, 1\]; give a fraction of 1"):
        search.tell([0] * 28, accuracy)
    assert search.history == []


@pytest.mark.parametrize("accuracy", [float("nan"), -0.5, 97.3])
def test_what_is_no_accuracy_is_refused_by_run_too(accuracy):
    with pytest.raises(ValueError, match=f"accuracy={accuracy} is not in"):
        ReinforceSearch().run(lambda genotype: accuracy, budget=3)


@pytest.mark.parametrize("searcher", SEARCHERS)
def test_what_is_no_sample_is_refused(searcher):
    search = searcher()
    for wrong in ([0] * 27, torch.zeros(1, 28, dtype=torch.int64), [0.5] * 28, [8] + [0] * 27):
        with pytest.raises(ValueError, match="sample"):
            search.tell(wrong, 0.5)
    assert search.history == []


def test_absent_edges_are_for_random_search_alone():
    RandomSearch().tell([7] * 28, 0.5)
    for search in (ReinforceSearch(), RegularizedEvolution()):
        with pytest.raises(ValueError, match=r"from 0 to 6 \(every edge has an operation here\)"):
            search.tell([7] * 28, 0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RandomSearch().run(estimate, 0), "budget=0 estimates; give at least 1"),
        (lambda: RandomSearch().best(), "no accuracy was told yet"),
        (lambda: ReinforceSearch(lr=0), "lr=0"),
        (lambda: ReinforceSearch(momentum=1), "momentum=1"),
        (lambda: ReinforceSearch().ask([0.5] * 27), r"uniforms must have shape \(28,\), got \(27,\)"),
        (lambda: ReinforceSearch().ask([1.0] * 28), "uniforms must be at least 0 and below 1"),
        (lambda: ReinforceSearch().slimmed(), "rewards has 0 step"),
        (lambda: RegularizedEvolution(population_size=0), "population_size=0"),
        (lambda: RegularizedEvolution(tournament_size=0), "tournament_size=0"),
        (lambda: RegularizedEvolution().ask(np.arange(10), 0, 0), "0 of 50 members are told; leave them out"),
        (lambda: RegularizedEvolution().slimmed_candidates(), "no accuracy was told yet"),
        (lambda: grown().ask([0, 1, 1]), "draws has 3 members; the tournament is one of 2"),
        (lambda: grown().ask([0, 9]), r"draws=\[0, 9\]: give whole numbers from 0 to 1"),
        (lambda: grown().ask(None, 28), r"position=\[28\]: give whole numbers from 0 to 27"),
        (lambda: grown().ask(None, 0, 6), r"choice=\[6\]: give whole numbers from 0 to 5"),
        (lambda: grown().load_state_dict({}), "state lacks searcher, arguments"),
        (lambda: grown().load_state_dict(RandomSearch().state_dict()), "state is of RandomSearch"),
        (lambda: grown().load_state_dict(RegularizedEvolution().state_dict()), "'population_size': 50.*build it alike"),
    ],
)
def test_what_is_wrong_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def grown():
    search = RegularizedEvolution(population_size=2, tournament_size=2)
    search.run(estimate, budget=2)
    return search
