"""Search for architectures with a goal of your own: accurate ones, but each parameter has its price.

    python examples/search_small_nets.py

``BPEBenchmark.run_trial`` is what a search is told about an architecture; everything around it (records, resume,
several processes, the kept network) stays as it is. From the command line the same class is ``--model
examples.search_small_nets.FrugalBenchmark`` with any ``bpe_*`` recipe.
"""

import dataclasses

from lightning.pytorch import Trainer

from callbacks import ArchitectureSearch
from datamodules import TrialDataModule
from lit_methods import BPEBenchmark
from lit_methods.bpe_mip.jobs import Job
from lit_methods.bpe_mip.trial import Trial

PRICE = 0.02  # of a thousand parameters of the cells, in accuracy


class FrugalBenchmark(BPEBenchmark):
    """Accuracy on validation images, less the price of the parameters."""

    def run_trial(self, job: Job) -> Trial:
        trial = super().run_trial(job)
        count = sum(value.numel() for name, value in trial.weights.items() if name.startswith("cells."))
        return dataclasses.replace(trial, accuracy=max(0.0, trial.accuracy - PRICE * count / 1000))


def main() -> None:
    data = TrialDataModule("digits", class_subset=[3, 5, 8], val_fraction=0.3)
    recipe = {"preset": "BPE1", "epochs": 3, "batch_size": 32, "lr": 0.1, "layers": 3, "channels": 4, "image_size": 8}
    model = FrugalBenchmark(recipe=recipe, mean=data.mean, std=data.std)
    search = ArchitectureSearch("evolution", budget=8, parallel=2, arguments={"population_size": 4}, slim=False)
    trainer = Trainer(
        max_epochs=20,
        accelerator="cpu",
        devices=1,
        logger=False,
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,
        enable_progress_bar=False,
        callbacks=[search],
        default_root_dir="runs/search_small_nets",
    )
    trainer.fit(model, datamodule=data)
    best = model.records.known[model.best["key"]]
    print(
        f"{search.summary()['search/genotype']}: worth {best['accuracy']:.3f}, accuracy {max(best['accuracies']):.3f}"
    )


if __name__ == "__main__":
    main()
