"""Attacks on one classifier at equal budgets: PPBA, NES, Bandits, SimBA-DCT, and torchattacks' Square if installed.

Shows how many queries each needs, and what PPBA's low-frequency projection does for NES and Bandits: a table, a CSV
with one row per image, and a picture of success against queries. Every attack gets the same images, L2 ball and budget;
with --tune also the step size that served it best on other images. Without a checkpoint a digits network is trained.

Run: python examples/compare_attacks.py
     python examples/compare_attacks.py --data cifar10 --root data/cifar10 --backbone resnet56 \
         --checkpoint resnet56.npz --num_images 100 --max_queries 2000 --eps 1 --seeds 3 --tune 20
"""

import csv
import logging
import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from matplotlib.figure import Figure
from torch import Tensor, nn

from datamodules import CIFARDataModule, ImageNetDataModule
from lit_methods.classification import ImageClassifier
from lit_methods.metrics.attack import AttackSuccessRate, MeanQueries, MedianQueries, SuccessAUC
from lit_methods.ppba import NES, Bandits, LowFrequencyProjection, PPBAAttack, SimBA
from lit_methods.ppba.attack import Attack
from lit_methods.ppba.build import SEED, SHELLS, low_frequencies
from lit_methods.ppba.functional import success_curve

BATCH = 16
Outcome = tuple[Tensor, Tensor, Tensor]  # success, queries and L2 of every image
Run = Callable[[nn.Module, Tensor, Tensor], Outcome]  # of images with these labels
Make = Callable[[Namespace, int, float], Run]  # with a seed and a step size


def run_of(attack: Attack) -> Run:
    def run(model: nn.Module, images: Tensor, labels: Tensor) -> Outcome:
        result = attack(model, images, labels)
        return result.success, result.queries, result.l2

    return run


def space(size: int, seed: int, low_dim: int | None = None) -> LowFrequencyProjection:
    return low_frequencies(size, low_dim=low_dim, seed=SEED + seed)


def ppba(count_update: Any, args: Namespace, seed: int, step: float) -> Run:
    options = {"eps": args.eps, "max_queries": args.max_queries, "count_update": count_update, "seed": seed}
    return run_of(PPBAAttack(space(args.size, seed), rho=step, **options))


def nes(projected: bool, args: Namespace, seed: int, step: float) -> Run:
    projection = space(args.size, seed) if projected else None
    fd_eta = 0.1 * args.eps / 5  # the published constants are for a ball of 5
    return run_of(NES(projection, eps=args.eps, fd_eta=fd_eta, lr=step, max_queries=args.max_queries, seed=seed))


def bandits(projected: bool, args: Namespace, seed: int, step: float) -> Run:
    projection = space(args.size, seed) if projected else None
    tile = 50 if args.size == 224 else args.size // 2
    return run_of(Bandits(projection, tile=tile, eps=args.eps, lr=step, max_queries=args.max_queries, seed=seed))


def simba(args: Namespace, seed: int, step: float) -> Run:
    lowest = space(args.size, seed, low_dim=3 * SHELLS[args.size][0] ** 2)  # all of the lowest shell
    return run_of(SimBA(lowest, step=step, eps=args.eps, max_queries=args.max_queries, seed=seed))


def square(args: Namespace, seed: int, step: float) -> Run:
    from torchattacks import Square  # pip install --no-deps torchattacks: it pins old versions of others

    def run(model: nn.Module, images: Tensor, labels: Tensor) -> Outcome:
        # as PPBA counts: the clean image is a query, and so is the first guess
        attack = Square(
            model, norm="L2", eps=args.eps, n_queries=args.max_queries - 2, n_restarts=1, p_init=step, seed=seed
        )
        torch.manual_seed(seed)
        attack.init_hyperparam(images)
        queries, adv = attack.attack_single_run(images, labels)
        with torch.no_grad():
            success = model(adv).argmax(1) != labels
        return success, (queries + 1).long().clamp_max(args.max_queries), (adv - images).flatten(1).norm(dim=1)

    return run


# name -> how to make it, step sizes to choose from, colour and line; but for Square's they are parts of eps
ATTACKS: dict[str, tuple[Make, list[float], str, str]] = {
    "PPBA": (partial(ppba, "both"), [0.002, 0.005, 0.01, 0.02, 0.04], "#2b6cb0", "-"),
    "PPBA, counts as released": (partial(ppba, "ineffective_only"), [0.002, 0.005, 0.01, 0.02, 0.04], "#2b6cb0", "--"),
    "fixed probabilities": (partial(ppba, "fixed"), [0.002, 0.005, 0.01, 0.02, 0.04], "#2b6cb0", ":"),
    "NES": (partial(nes, False), [0.03, 0.06, 0.12, 0.24, 0.48], "#e2a63b", "-"),
    "NES, projected": (partial(nes, True), [0.03, 0.06, 0.12, 0.24, 0.48], "#e2a63b", "--"),
    "Bandits": (partial(bandits, False), [0.0125, 0.025, 0.05, 0.1, 0.2], "#2f9e6e", "-"),
    "Bandits, projected": (partial(bandits, True), [0.0125, 0.025, 0.05, 0.1, 0.2], "#2f9e6e", "--"),
    "SimBA-DCT": (simba, [0.02, 0.04, 0.1, 0.2, 0.4], "#8a8f98", "-"),
    "Square": (square, [0.03, 0.1, 0.3, 0.8], "#b83280", "-"),
}
PUBLISHED = {"PPBA": 0.002, "NES": 0.06, "Bandits": 0.1, "SimBA-DCT": 0.04, "Square": 0.8}


def step_of(name: str, share: float, args: Namespace) -> float:
    return share if name == "Square" else share * args.eps


def run_attack(
    name: str, args: Namespace, seed: int, step: float, model: nn.Module, images: Tensor, labels: Tensor
) -> Outcome:
    run = ATTACKS[name][0](args, seed, step)
    parts = [run(model, x, y) for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True)]
    success, queries, l2 = (torch.cat(values) for values in zip(*parts, strict=True))
    return success & (queries <= args.max_queries), queries, l2


def tune(name: str, args: Namespace, model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The step size with the largest area under the success curve at a quarter of the budget."""
    args = Namespace(**vars(args) | {"max_queries": max(50, args.max_queries // 4)})
    scores: dict[float, float] = {}

    def score(share: float) -> None:
        success, queries, _ = run_attack(name, args, 0, step_of(name, share, args), model, images, labels)
        auc = SuccessAUC(args.max_queries)
        auc.update(success, queries)
        scores[share] = round(float(auc.compute()), 4)

    for share in ATTACKS[name][1]:
        score(share)
    while (best := max(scores, key=lambda share: scores[share])) in (min(scores), max(scores)) and name != "Square":
        score(best / 2 if best == min(scores) else best * 2)  # the best one may lie beyond
    print(f"  {name}: step {step_of(name, best, args):g}; area under the curve {scores}", flush=True)
    return step_of(name, best, args)


def figures(name: str, success: Tensor, queries: Tensor, l2: Tensor, args: Namespace) -> dict[str, Any]:
    budget = args.max_queries
    metrics = {
        "success": AttackSuccessRate(budget),
        "mean_queries": MeanQueries("success", budget),
        "median_queries": MedianQueries(budget),
        "mean_queries_all": MeanQueries("all", budget),
        "auc": SuccessAUC(budget),
    }
    for metric in metrics.values():
        metric.update(success, queries)
    return (
        {"attack": name}
        | {k: round(float(m.compute()), 4) for k, m in metrics.items()}
        | {"l2": round(float(l2[success].mean()), 4), "l2_max": round(float(l2.max()), 4)}
    )


def draw(curves: dict[str, Tensor], thresholds: Tensor, args: Namespace) -> Figure:
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, curve in curves.items():
        axes.plot(thresholds, curve, color=ATTACKS[name][2], linestyle=ATTACKS[name][3], label=name, linewidth=1.6)
    axes.set(xlabel="queries", ylabel="images attacked", xlim=(0, args.max_queries), ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure


class Victim(nn.Module):
    """Logits of images in [0, 1]; ``run`` may be an ONNX Runtime session of the same network."""

    def __init__(self, classifier: ImageClassifier, run: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        self.classifier, self.run = classifier, run

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(images) if self.run is None else self.run(images)


def prepare(args: Namespace) -> tuple[nn.Module, Tensor, Tensor]:
    """The network, and images that it classifies correctly: first those to attack, then those to tune on."""
    options: dict[str, Any] = {"batch_size": 64, "num_workers": 0, "seed": 0}
    if args.data == "imagenet":
        data: Any = ImageNetDataModule(root=args.root, **options)
    else:
        root = {} if args.data == "digits" else {"root": args.root}
        data = CIFARDataModule(name=args.data, **root, **options)
    mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]) if args.imagenet_norm else (data.mean, data.std)
    classes = 1000 if args.data == "imagenet" else data.num_classes
    network = ImageClassifier(args.backbone, classes, mean=mean, std=std, base_checkpoint=args.checkpoint, lr=0.1)
    if args.checkpoint is None:
        trainer = Trainer(
            max_epochs=4, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, use_distributed_sampler=False,
        )  # fmt: skip
        trainer.fit(network, datamodule=data)
    network.eval()
    data.setup("test")
    source = data._test
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))
    images, labels = [], []
    wanted = args.num_images + args.tune
    for rows in order.split(64):
        batch = source.__getitems__(rows.tolist())
        x = batch["image"].float() / 255
        with torch.no_grad():
            right = network(x).argmax(1) == batch["label"]
        images.append(x[right])
        labels.append(batch["label"][right])
        if sum(map(len, labels)) >= wanted:
            break
    return network, torch.cat(images)[:wanted], torch.cat(labels)[:wanted]


def session(network: ImageClassifier, example: Tensor, folder: Path) -> Callable[[Tensor], Tensor]:
    """The same network run by ONNX Runtime: a quarter faster on a CPU, and any callable can be attacked."""
    import onnxruntime

    path = folder / "victim.onnx"
    graph = nn.Sequential(network.normalize, network.model).eval()
    shapes = {"input": {0: torch.export.Dim("batch")}}
    torch.onnx.export(graph, (example[:2],), str(path), dynamo=True, dynamic_shapes=shapes, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    running = onnxruntime.InferenceSession(str(path), options)
    name = running.get_inputs()[0].name
    return lambda images: torch.from_numpy(running.run(None, {name: images.contiguous().numpy()})[0])


def parse(argv: list[str] | None = None) -> Namespace:
    parser = ArgumentParser(description=__doc__.split("\n\n")[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", choices=["digits", "cifar10", "imagenet"], default="digits")
    parser.add_argument("--root", default="data", help="of the data set; digits come with scikit-learn")
    parser.add_argument("--backbone", default="resnet20")
    parser.add_argument("--checkpoint", help="trained weights; without, the network is trained first")
    parser.add_argument("--imagenet_norm", action="store_true", help="the network wants ImageNet's mean and std")
    parser.add_argument("--onnx", action="store_true", help="run the network by ONNX Runtime")
    parser.add_argument("--attacks", nargs="+", choices=list(ATTACKS), help="all that can be run unless given")
    parser.add_argument("--num_images", type=int, default=20)
    parser.add_argument("--max_queries", type=int, default=300)
    parser.add_argument("--eps", type=float, default=8.0, help="L2, pixels in [0, 1]")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--tune", type=int, default=8, help="choose each attack's step size on so many other images")
    parser.add_argument("--out", type=Path, default=Path("compare_attacks"))
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    args = parse(argv)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    seed_everything(0, verbose=False)
    args.out.mkdir(parents=True, exist_ok=True)
    network, images, labels = prepare(args)
    args.size = images.shape[-1]
    model = Victim(network, session(network, images, args.out) if args.onnx else None).eval()
    attacked, others = images[: args.num_images], images[args.num_images :]
    print(
        f"{args.backbone} on {args.data}: {len(attacked)} images, L2 {args.eps:g}, {args.max_queries} queries",
        flush=True,
    )
    rows, curves, thresholds = [], {}, torch.linspace(0, args.max_queries, 201)
    per_image = (args.out / "images.csv").open("w", newline="")
    writer = csv.writer(per_image)
    writer.writerow(["attack", "seed", "image", "success", "queries", "l2"])
    for name in args.attacks or ATTACKS:
        if name == "Square" and not available("torchattacks"):
            print("  Square: left out, torchattacks is not installed", flush=True)
            continue
        family = next((known for known in PUBLISHED if name.startswith(known)), "PPBA")
        step = step_of(name, PUBLISHED[family], args)
        if args.tune:
            step = tune(name, args, model, others, labels[args.num_images :])
        began = time.monotonic()
        runs = [run_attack(name, args, s, step, model, attacked, labels[: args.num_images]) for s in range(args.seeds)]
        success, queries, l2 = (torch.cat(values) for values in zip(*runs, strict=True))
        for seed, run in enumerate(runs):
            writer.writerows(
                [name, seed, i, int(s), int(q), round(float(d), 4)]
                for i, (s, q, d) in enumerate(zip(*run, strict=True))
            )
        per_image.flush()
        by_seed = [float(queries_[success_].float().mean()) for success_, queries_, _ in runs]
        row = figures(name, success, queries, l2, args) | {
            "step": step,
            "seconds": round(time.monotonic() - began, 1),
            "mean_by_seed": " ".join(f"{m:.0f}" for m in by_seed),
        }
        rows.append(row)
        curves[name] = success_curve(success, queries, thresholds, args.max_queries)
        print(
            "  " + "  ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()), flush=True
        )
        draw(curves, thresholds, args).savefig(args.out / "success_against_queries.png", dpi=100)
    per_image.close()
    with (args.out / "attacks.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    print(args.out)
    return rows


def available(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None


if __name__ == "__main__":
    main()
