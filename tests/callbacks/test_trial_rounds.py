"""Rounds of trials inside a fit: each job once, what failed once more, and nothing without a record."""

import pytest

from callbacks.trial_rounds import TrialRounds, accuracies
from lit_methods.bpe_mip.jobs import Job
from lit_methods.bpe_mip.search_space import genotype_from_sample28, named_recipe
from tests.fake_trials import SMALL, architectures, by_genotype, fake_trials, number, same_state, search


def jobs(*numbers: int) -> list[Job]:
    texts = architectures(8)
    return [Job(genotype_from_sample28([int(n) for n in texts[i].split()]), named_recipe(SMALL)) for i in numbers]


class Rounds(TrialRounds):
    """Hands out what it is given, and keeps what comes back."""

    def __init__(self, *rounds: list[Job]) -> None:
        super().__init__()
        self.rounds, self.back = list(rounds), []

    def first_jobs(self, trainer, module):
        return self.rounds.pop(0)

    def next_jobs(self, trainer, module, records):
        self.back.append(accuracies(records))
        return self.rounds.pop(0) if self.rounds else []

    def restore(self, state):
        pass


def wanted(these: list[Job]) -> list[float]:
    return [by_genotype(job.genotype, job.recipe, job.seed) for job in these]


def test_records_come_back_in_the_order_of_the_jobs(make_trainer, tmp_path):
    rounds = Rounds(jobs(2, 0), jobs(5, 1, 3))
    with fake_trials(tmp_path / "calls") as calls:
        module = search(make_trainer, rounds)
    assert rounds.back == [wanted(jobs(2, 0)), wanted(jobs(5, 1, 3))]
    assert [call[0] for call in calls] == [job.genotype.key() for job in jobs(2, 0, 5, 1, 3)]
    assert rounds.finished
    assert module.trainer.current_epoch == 2
    assert int(module.jobs_done) == 5


def test_a_job_that_comes_again_is_not_made_again(make_trainer, tmp_path):
    """Neither within a round, where two processes would make it side by side, nor in a later one."""
    rounds = Rounds(jobs(0, 1, 0), jobs(1), jobs(2))
    with fake_trials(tmp_path / "calls") as calls:
        module = search(make_trainer, rounds)
    assert len(calls) == calls.different == 3
    assert rounds.back == [wanted(jobs(0, 1, 0)), wanted(jobs(1)), wanted(jobs(2))]
    assert int(module.jobs_done) == 4


def test_the_best_network_of_all_rounds_is_kept(make_trainer, tmp_path):
    with fake_trials(tmp_path / "calls"):
        module = search(make_trainer, Rounds(jobs(0, 1, 2), jobs(3, 4)))
    best = max(jobs(0, 1, 2, 3, 4), key=lambda job: number(job.genotype))
    assert module.genotype == best.genotype
    assert module.best["accuracy"] == number(best.genotype)
    assert same_state(module.model.state_dict(), module.trials.build(best.genotype, best.recipe).state_dict())
    assert module.recipe == best.recipe
    summary = module.summary()
    assert (summary["trial/done"], summary["trial/failed"]) == (5, 0)
    assert summary["trial/best"] == number(best.genotype)


def test_of_equals_the_smaller_key_wins_whoever_comes_first(make_trainer, tmp_path):
    found = []
    for i, order in enumerate(((0, 1, 2), (2, 1, 0))):
        with fake_trials(tmp_path / f"calls{i}", lambda *job: 0.5):
            found.append(search(make_trainer, Rounds(jobs(*order)), records=str(tmp_path / str(i))).best["key"])
    assert found[0] == found[1]


def test_what_failed_is_tried_again_and_then_is_nan(make_trainer, tmp_path):
    bad, shaky = (jobs(i)[0].genotype.key() for i in (1, 2))
    tries = []

    def score(genotype, recipe, seed):
        tries.append(genotype.key())
        if genotype.key() == bad or (genotype.key() == shaky and tries.count(shaky) == 1):
            raise FloatingPointError("the loss is not finite")
        return number(genotype)

    rounds = Rounds(jobs(0, 1, 2, 3), jobs(1, 4))
    with fake_trials(tmp_path / "calls", score), pytest.warns(UserWarning, match="a trial failed"):
        module = search(make_trainer, rounds)
    first, second = rounds.back
    assert first == pytest.approx([*wanted(jobs(0)), float("nan"), *wanted(jobs(2, 3))], nan_ok=True)
    assert second == pytest.approx([float("nan"), *wanted(jobs(4))], nan_ok=True)
    assert (tries.count(bad), tries.count(shaky), len(tries)) == (2, 2, 7)
    record = module.records.find(jobs(1)[0])
    assert (record["status"], record["attempts"]) == ("failed", 2)
    assert record["error"] == "FloatingPointError: the loss is not finite"
    assert module.summary()["trial/failed"] == 1
    assert float(module.trainer.callback_metrics["trial/failed"]) == 1


def test_the_rest_of_a_round_is_the_next_epoch(make_trainer, tmp_path):
    rounds = Rounds(jobs(0, 1, 2, 3, 4), jobs(5))
    with fake_trials(tmp_path / "calls") as calls:
        module = search(make_trainer, rounds, {"limit_train_batches": 2})
    assert len(calls) == calls.different == 6
    assert module.trainer.current_epoch == 4
    assert [len(one) for one in rounds.back] == [5, 1]


def test_records_of_another_run_are_looked_at_but_not_made(make_trainer, tmp_path):
    for number_ in range(2):
        rounds = Rounds(jobs(0, 1), jobs(2, 3))
        with fake_trials(tmp_path / "calls") as calls:
            module = search(make_trainer, rounds, records=str(tmp_path / "records"))
        assert len(calls) == 4, number_
        assert rounds.back == [wanted(jobs(0, 1)), wanted(jobs(2, 3))]
    best = max(jobs(0, 1, 2, 3), key=lambda job: number(job.genotype))
    assert module.genotype == best.genotype


def test_a_best_network_whose_weights_are_gone_is_left_out(make_trainer, tmp_path):
    with fake_trials(tmp_path / "calls"):
        search(make_trainer, Rounds(jobs(0, 1)), records=str(tmp_path / "records"))
        for path in (tmp_path / "records").glob("*.pt"):
            path.write_bytes(b"damaged")
        module = search(make_trainer, Rounds(jobs(0, 1)), records=str(tmp_path / "records"))
    assert module.best == {}


def test_other_images_have_other_records(make_trainer, tmp_path):
    from datamodules import TrialDataModule
    from lit_methods.bpe_mip.benchmark import BPEBenchmark

    folder = str(tmp_path / "records")
    with fake_trials(tmp_path / "calls") as calls:
        search(make_trainer, Rounds(jobs(0)), records=folder)
        module = BPEBenchmark(recipe=SMALL, records=folder)
        options = {"max_epochs": 3, "reload_dataloaders_every_n_epochs": 1, "limit_val_batches": 0}
        trainer = make_trainer(callbacks=[Rounds(jobs(0))], **options)
        trainer.fit(module, datamodule=TrialDataModule("digits", class_subset=[0, 1], seed=1))
    assert len(calls) == 2


def test_the_trainer_has_to_read_the_jobs_anew(make_trainer):
    with pytest.raises(ValueError, match=r"set trainer\.reload_dataloaders_every_n_epochs=1"):
        search(make_trainer, Rounds(jobs(0)), {"reload_dataloaders_every_n_epochs": 0})
