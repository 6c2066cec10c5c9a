"""Four pruners on one trained network within equal budgets: HRank, FilterSketch, the L1 norm of filters, and chance.

Each is given the same multiply-adds at most, one rate for all layers, and the same fine-tune, then tested and timed: a
table, which says how close to the budget each comes, and a picture of accuracy against cost. Without a checkpoint, a
network is trained first.

Run: python examples/compare_pruners.py
     python examples/compare_pruners.py --checkpoint resnet20.npz --dataset cifar10 --batch_size 128 --steps 4000
"""

import csv
import logging
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from datamodules import CIFARDataModule
from lit_methods.backbones import Plan, PrunePoint, prune_model
from lit_methods.classification import ImageClassifier
from lit_methods.filter_sketch import structure as filter_sketch
from lit_methods.filter_sketch.model import sketch_model
from lit_methods.functional import count_macs, measure_latency
from lit_methods.functional.budget import Budget
from lit_methods.functional.rates import format_rates, round_rate_up
from lit_methods.hrank import structure as hrank
from lit_methods.hrank.functional import rank_scores

EPOCHS, LR = 5, 0.1  # of the training, where no checkpoint is given
STYLES = {
    "HRank": {"color": "#2b6cb0", "marker": "o"},
    "FilterSketch": {"color": "#e2a63b", "marker": "s"},
    "L1 norm": {"color": "#2f9e6e", "marker": "^"},
    "random": {"color": "#8a8f98", "marker": "D"},
}
COLUMNS = {  # of the table, and how they are printed
    "method": "",
    "budget": "g",
    "macs": ",",
    "macs_share": ".4f",
    "params": ",",
    "latency_ms": ".2f",
    "top1_pruned": ".4f",
    "top1": ".4f",
    "steps": "",
    "rates": "",
}
Points = list[PrunePoint]
Scores = dict[str, Tensor]  # convolution -> one number per filter
Pruned = tuple[str, Plan, nn.Module]  # the rates within the budget, what they leave, and the small network


class Classifier(ImageClassifier):
    def configure_optimizers(self) -> Any:  # the house's cosine falls by epochs, and a fine-tune may be less than one
        settings: Any = super().configure_optimizers()
        cosine = CosineAnnealingLR(settings["optimizer"], int(self.trainer.estimated_stepping_batches))
        return settings | {"lr_scheduler": {"scheduler": cosine, "interval": "step"}}


# HRank, the L1 norm and chance differ in one number per filter and in nothing else: a criterion of your own is one more
# function that gives such a dict. FilterSketch does not choose among filters, it makes new ones, so it has no scores.


def mean_ranks(dense: ImageClassifier, points: Points, data: CIFARDataModule, num_images: int) -> Scores:
    data.setup("fit")
    loader = data.calibration_dataloader(num_images)
    images = (data.on_after_batch_transfer(batch, 0)["image"] for batch in loader)
    return rank_scores(dense.model, map(dense.normalize, images), points)


def l1_norms(network: nn.Module, points: Points) -> Scores:
    return {p.conv: network.get_parameter(f"{p.conv}.weight").detach().abs().sum((1, 2, 3)) for p in points}


def random_scores(points: Points, seed: int) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    return {p.conv: torch.rand(p.num_filters, generator=generator) for p in points}


def remove_filters(
    structure: hrank.TableStructure, scores: Scores, network: nn.Module, budget: Budget, size: list[int]
) -> Pruned:
    """Of every convolution the filters of lowest score go; a rate is the fraction that is removed."""

    def network_at(rates: list[float]) -> nn.Module:
        return structure.shape(structure.plan(scores, rates))

    rates = budget.rates(network_at, structure.group_scores(scores), input_size=size)
    plan = structure.plan(scores, rates)
    return format_rates(rates), plan, prune_model(network, plan)


def sketch_filters(
    structure: filter_sketch.TableStructure, network: nn.Module, budget: Budget, size: list[int]
) -> Pruned:
    """Inside the blocks fewer, new filters stand for all the old ones; a rate is the fraction that is kept."""

    def kept(removed: list[float]) -> list[float]:
        return [round_rate_up(1 - fraction) for fraction in removed]

    def network_at(removed: list[float]) -> nn.Module:
        return structure.shape(structure.plan(kept(removed)))

    scores, highest = filter_sketch.group_scores(structure, network), [1 - rate for rate in structure.lowest]
    rates = kept(budget.rates(network_at, scores, input_size=size, highest=highest))
    return format_rates(rates), structure.plan(rates), sketch_model(network, rates)


def add_costs(rows: list[dict[str, Any]], networks: list[nn.Module], size: list[int]) -> None:
    torch.set_num_threads(1)
    latency = measure_latency({str(i): network for i, network in enumerate(networks)}, size, repeats=50)
    macs = [count_macs(network, size) for network in networks]
    for i, (row, network) in enumerate(zip(rows, networks, strict=True)):
        row |= {"macs": macs[i], "macs_share": macs[i] / macs[0], "latency_ms": latency[str(i)]}
        row["params"] = sum(parameter.numel() for parameter in network.parameters())


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    figure = Figure(figsize=(9, 3.6), layout="constrained")  # no pyplot: no global state, no display
    panels = figure.subplots(1, 2, sharey=True)
    for axes, column, unit in zip(panels, ("macs", "latency_ms"), (1e6, 1), strict=True):
        for method, style in STYLES.items():
            curve = sorted((row[column] / unit, row["top1"]) for row in rows if row["method"] == method)
            axes.plot(*zip(*curve, strict=True), label=method, **style)
        axes.plot(rows[0][column] / unit, rows[0]["top1"], "*", color="black", markersize=12, label="dense")
    panels[0].set_xlabel("million multiply-adds")
    panels[1].set_xlabel("milliseconds per image (CPU, one thread)")
    panels[0].set_ylabel("test top-1 after fine-tuning")
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=150)


def parse(argv: Sequence[str] | None) -> Namespace:
    parser = ArgumentParser(formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--backbone", default="resnet20", help="a network with a table of blocks: ResNets, GoogLeNet")
    parser.add_argument("--checkpoint", help="its trained weights; None trains it first")
    parser.add_argument("--dataset", default="digits", choices=["digits", "cifar10", "cifar100"])
    parser.add_argument("--root", default="data", help="folder of the data set")
    parser.add_argument("--mean", type=float, nargs=3, help="what the network was trained with; None is the data's own")
    parser.add_argument("--std", type=float, nargs=3, help="what the network was trained with; None is the data's own")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.7, 0.5, 0.35], help="of the dense multiply-adds")
    parser.add_argument("--steps", type=int, default=100, help="of each fine-tune")
    parser.add_argument("--lr", type=float, default=0.02, help="of each fine-tune; falls to zero as a cosine")
    parser.add_argument("--batch_size", type=int, default=32, help="of training and test")
    parser.add_argument("--num_images", type=int, default=640, help="training images that ranks are taken on")
    parser.add_argument("--seed", type=int, default=0, help="of the order of training, and of chance")
    parser.add_argument("--out", type=Path, default=Path("runs/compare_pruners"), help="folder for table and picture")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # a dozen short runs
    seed_everything(args.seed)
    data = CIFARDataModule(args.dataset, args.root, args.batch_size, val_fraction=0, seed=args.seed)
    removal = hrank.TableStructure(args.backbone, data.num_classes, residual="live")
    sketching = filter_sketch.TableStructure(args.backbone, data.num_classes)
    mean, std = (args.mean, args.std) if args.mean or args.std else (data.mean, data.std)
    classifier = partial(Classifier, args.backbone, data.num_classes, mean=mean, std=std)
    trainer = partial(
        Trainer,
        devices=1,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )

    dense = classifier(base_checkpoint=args.checkpoint, lr=LR)
    if args.checkpoint is None:
        print(f"training {args.backbone} on {args.dataset} for {EPOCHS} epochs")
        trainer(max_epochs=EPOCHS).fit(dense, datamodule=data)
    pruners = {
        "HRank": partial(remove_filters, removal, mean_ranks(dense, removal.points, data, args.num_images)),
        "FilterSketch": partial(sketch_filters, sketching),
        "L1 norm": partial(remove_filters, removal, l1_norms(dense.model, removal.points)),
        "random": partial(remove_filters, removal, random_scores(removal.points, args.seed)),
    }
    pruned = [  # all of them first: a budget that cannot be met is said before hours of fine-tuning
        (method, budget, *prune(dense.model, Budget(target_macs=budget), data.input_size))
        for budget in args.budgets
        for method, prune in pruners.items()
    ]

    def top1(module: ImageClassifier) -> float:
        return trainer().test(module, datamodule=data, verbose=False)[0]["test/top1"]

    modules, accuracy = [dense], top1(dense)
    rows = [{"method": "dense", "budget": 1.0, "top1_pruned": accuracy, "top1": accuracy, "steps": 0, "rates": ""}]
    for method, budget, rates, plan, network in pruned:
        module = classifier(plan=plan.to_dict(), lr=args.lr)
        module.model.load_state_dict(network.state_dict())
        row = {"method": method, "budget": budget, "top1_pruned": top1(module)}
        seed_everything(args.seed, verbose=False)  # the same batches for all
        tuning = trainer(max_steps=args.steps)
        tuning.fit(module, datamodule=data)
        row |= {"top1": top1(module), "steps": tuning.global_step, "rates": rates}
        print(f"{method} at {budget:g}: top-1 {row['top1_pruned']:.4f}, fine-tuned {row['top1']:.4f}")
        rows.append(row)
        modules.append(module)
    add_costs(rows, [module.model for module in modules], data.input_size)

    args.out.mkdir(parents=True, exist_ok=True)
    with open(args.out / "pruners.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, args.out / "pruners.png")
    cells = [list(COLUMNS), *([format(row[column], how) for column, how in COLUMNS.items()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    print(f"written to {args.out}: pruners.csv, pruners.png")


if __name__ == "__main__":
    main()
