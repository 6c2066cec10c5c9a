"""Searches as rounds of trials equal the searchers on their own."""

import json

import pytest
import torch

from callbacks import ArchitectureSearch
from callbacks.architecture_search import SEARCHERS
from lit_methods.bpe_mip.search_space import genotype_from_sample28, named_recipe
from tests.fake_trials import SMALL, fake_trials, number, search

pytestmark = pytest.mark.usefixtures("no_figures")

ARGUMENTS = {"random": {}, "evolution": {"population_size": 3, "tournament_size": 2}, "reinforce": {"lr": 0.5}}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_one_at_a_time_is_the_searchers_own_run(make_trainer, tmp_path, name):
    callback = ArchitectureSearch(name, budget=7, seed=3, slim=False, arguments=ARGUMENTS[name])
    with fake_trials(tmp_path / "calls") as calls:
        module = search(make_trainer, callback)
    alone = SEARCHERS[name](generator=torch.Generator().manual_seed(3), **ARGUMENTS[name])
    genotype, accuracy = alone.run(number, 7)
    assert callback.found == (genotype, accuracy)
    assert [sample.tolist() for sample, _ in callback.searcher.history] == [s.tolist() for s, _ in alone.history]
    assert module.genotype.key() == genotype.key()
    assert {call[1] for call in calls} == {named_recipe(SMALL).key()}
    summary = callback.summary()
    known = [accuracy for _, accuracy in alone.history]
    assert summary["search/best"] == accuracy
    assert summary["search/mean"] == pytest.approx(sum(known) / 7)
    assert (summary["search/evaluations"], summary["search/failed"]) == (7, 0)
    assert "search/slimmed" not in summary
    written = json.loads((tmp_path / "genotype.json").read_text())
    assert genotype_key(written) == genotype.key()


def genotype_key(plain) -> str:
    from lit_methods.bpe_mip.module import as_genotype

    return as_genotype(plain).key()


def test_several_at_a_time_are_asked_for_before_any_is_told(make_trainer, tmp_path):
    callback = ArchitectureSearch("evolution", budget=6, parallel=4, slim=False, arguments=ARGUMENTS["evolution"])
    with fake_trials(tmp_path / "calls"):
        search(make_trainer, callback)
    alone = SEARCHERS["evolution"](generator=torch.Generator().manual_seed(0), **ARGUMENTS["evolution"])
    for count in (4, 2):
        asked = [alone.ask() for _ in range(count)]
        for sample in asked:
            alone.tell(sample, number(genotype_from_sample28(sample)))
    assert [s.tolist() for s, _ in callback.searcher.history] == [s.tolist() for s, _ in alone.history]


def test_evolution_slims_by_ten_masks(make_trainer, tmp_path):
    callback = ArchitectureSearch("evolution", budget=4, arguments=ARGUMENTS["evolution"])
    with fake_trials(tmp_path / "calls") as calls:
        module = search(make_trainer, callback)
    assert len(list(calls)) == 4 + len({call[0] for call in list(calls)[4:]})
    alone = SEARCHERS["evolution"](generator=torch.Generator().manual_seed(0), **ARGUMENTS["evolution"])
    alone.run(number, 4)
    slim = [genotype_from_sample28(sample) for sample in alone.slimmed_candidates()]
    best = max(slim, key=number)
    assert callback.found == (best, number(best))
    assert callback.slimmed == [number(one) for one in slim]
    assert all(len(node) == 2 for node in (*best.normal, *best.reduce))
    summary = callback.summary()
    assert summary["search/slimmed"] == number(best)
    assert summary["search/best"] == alone.best()[1]
    assert summary["search/evaluations"] == 4
    assert module.best["accuracy"] == max(summary["search/best"], summary["search/slimmed"])


def test_reinforce_slims_by_probability(make_trainer, tmp_path):
    callback = ArchitectureSearch("reinforce", budget=4)
    with fake_trials(tmp_path / "calls") as calls:
        search(make_trainer, callback)
    alone = SEARCHERS["reinforce"](generator=torch.Generator().manual_seed(0))
    alone.run(number, 4)
    slim = genotype_from_sample28(alone.slimmed())
    assert callback.found == (slim, number(slim))
    assert len(calls) == 5


def test_reinforce_does_not_learn_from_what_it_draws_again(make_trainer, tmp_path):
    """Estimates up to 0.001 and failures count towards the budget, and are not told."""
    made: dict[str, int] = {}

    def score(genotype, recipe, seed):
        made.setdefault(genotype.key(), len(made))
        if made[genotype.key()] == 1:
            raise FloatingPointError("not finite")
        return {0: 0.001, 2: 0.0}.get(made[genotype.key()], number(genotype))

    callback = ArchitectureSearch("reinforce", budget=5, slim=False)
    with fake_trials(tmp_path / "calls", score):
        search(make_trainer, callback)
    assert len(callback.searcher.history) == 2
    assert len(callback.estimates) == 5
    assert (callback.summary()["search/evaluations"], callback.summary()["search/failed"]) == (5, 1)


def test_nothing_above_the_least_is_an_error(make_trainer, tmp_path):
    told = r"none of 2 estimates was above 0\.001"
    with fake_trials(tmp_path / "calls", lambda *job: 0.0), pytest.raises(ValueError, match=told):
        search(make_trainer, ArchitectureSearch("reinforce", budget=2))


def test_an_end_before_the_budget_shows_what_was_found(make_trainer, tmp_path):
    callback = ArchitectureSearch("random", budget=50)
    with fake_trials(tmp_path / "calls"):
        search(make_trainer, callback, {"max_epochs": 3})
    assert callback.summary()["search/evaluations"] == 3
    assert (tmp_path / "genotype.json").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"searcher": "annealing"}, "searcher='annealing' must be one of random, evolution, reinforce"),
        ({"budget": 0}, "budget=0 must be at least 1"),
        ({"parallel": 0}, "parallel=0 must be at least 1"),
        ({"searcher": "random", "arguments": {"lr": 1.0}}, "do not fit RandomSearch"),
        ({"searcher": "evolution", "arguments": {"population_size": 0}}, "population_size=0"),
    ],
)
def test_wrong_arguments_are_named(arguments, text):
    with pytest.raises(ValueError, match=text):
        ArchitectureSearch(**arguments)
