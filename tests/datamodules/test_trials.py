"""Jobs as training batches, dealt out over the processes; images for validation and test as ever."""

import pytest
import torch

from datamodules import CIFARDataModule, TrialDataModule
from datamodules.trials import JobSampler


@pytest.mark.parametrize("count", [0, 1, 4, 5, 7])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_each_job_goes_to_one_process_and_all_have_equally_many_batches(count, ranks):
    shares = [list(JobSampler(count, ranks, rank)) for rank in range(ranks)]
    assert sorted(job for share in shares for job in share if job >= 0) == list(range(count))
    assert {len(share) for share in shares} == {max(1, -(-count // ranks))}
    assert [len(JobSampler(count, ranks, rank)) for rank in range(ranks)] == [len(share) for share in shares]


def test_jobs_come_in_the_order_of_the_list_across_processes():
    first, second = (list(JobSampler(5, 2, rank)) for rank in (0, 1))
    assert (first, second) == ([0, 2, 4], [1, 3, -1])


def test_a_loader_goes_on_after_any_job():
    data = TrialDataModule("digits")
    data.setup("fit")
    data.set_jobs([{"seed": seed} for seed in range(4)])
    loader = data.train_dataloader()
    it = iter(loader)
    assert [next(it)["jobs"][0]["seed"] for _ in range(3)] == [0, 1, 2]
    again = data.train_dataloader()
    again.load_state_dict(loader.state_dict())
    assert [batch["jobs"][0]["seed"] for batch in again] == [3]
    assert [batch["jobs"][0]["seed"] for batch in again] == [0, 1, 2, 3]  # the next epoch has all of them


def test_without_jobs_there_is_one_empty_batch():
    data = TrialDataModule("digits")
    data.setup("fit")
    assert list(data.train_dataloader()) == [{"jobs": []}]


def test_jobs_stay_as_they_are_and_images_become_numbers():
    data, plain = TrialDataModule("digits", batch_size=8), CIFARDataModule("digits", batch_size=8)
    jobs = {"jobs": [{"lr": 0.1}]}
    assert data.on_after_batch_transfer(jobs, 0) is jobs
    for one in (data, plain):
        one.setup("fit")
    batches = [one.on_after_batch_transfer(next(iter(one.val_dataloader())), 0)["image"] for one in (data, plain)]
    assert torch.equal(*batches)
    assert batches[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "value"), [("image_size", 16), ("cutout", 4), ("split_halves", True), ("per_class_batch", 2)]
)
def test_what_a_recipe_decides_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}={value} has no effect on trials: each recipe has its own"):
        TrialDataModule("digits", **{name: value})
