"""NAD: learn, for each class, which channels a frozen classifier needs for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric, MetricCollection

from lit_methods.backbones import find_backbone
from lit_methods.base_checkpoint import CheckpointStart, described, is_description, read_trained
from lit_methods.contract import ExportGraph
from lit_methods.functional.drawing import caption
from lit_methods.functional.suggestions import shorten
from lit_methods.inference import prepare_inputs
from lit_methods.nad.checks import check_arguments, check_counts, check_precision, checked_rows
from lit_methods.nad.evaluation import gated_hits, own_scores
from lit_methods.nad.functional import nad_loss
from lit_methods.nad.gating import GatedModel, block_points, gate_points_of, refuse_hooks
from lit_methods.nad.learning import Learned, set_gradients
from lit_methods.nad.metrics import Rate, Selectivity
from lit_methods.nad.network_training import make_sgd, sgd_step
from lit_methods.nad.optimizer import NormalizedDescent
from lit_methods.nad.pictures import focus_sheets, largest_crop
from lit_methods.nad.sharing import share_rows
from lit_methods.nad.structure import sub_network

STEPS, SKIPPED, IMAGES = range(3)  # columns of NAD.progress


class NAD(CheckpointStart):
    """The sub-architecture that a trained classifier uses for each class (NAD, arXiv 2003.13268).

    The network is frozen and stays in eval mode. A fit learns gates, one number per class and channel, on training
    images: those of a class alone move its gates, whatever else is in the batch, so many classes learn at once and
    each as it would alone. Batches that the datamodule's ``per_class_batch`` groups by class are the paper's; several
    processes share the classes out and tell each other the gates that changed, so each can be saved and resumed.

    Logs ``train/loss`` (while the network itself is trained, its own), ``train/ce``, ``train/mse`` (means over the
    classes of a batch), ``train/kept_ratio`` (their open gates) and ``train/skipped`` (part of them of which the
    network got no image right); ``val/own_top1`` (images by the hard-gated network of their own class),
    ``val/other_top1`` (by those of other classes), ``val/selectivity`` (``own * (1 - other)``), ``val/false_own``
    (images of other classes that a sub-architecture takes for its own), ``val/kept_ratio`` (open gates over all), the
    figures of ``ImageClassifier`` for the network without gates, and the same for ``test``.

    ``predict_step`` gives per image ``labels``, ``names`` and ``scores`` of the up to five most likely classes,
    ``own_scores`` (what the sub-architecture of each of them gives it, NaN without one), ``class_id`` and
    ``class_name`` of the sub-architecture whose activation maps are shown, and ``maps``, a picture (3, H, W) uint8:
    for each gate point the image, dark outside of the focus. Inside a fit or a test it gives what ``ImageClassifier``
    gives, for ``PredictionLogger``.

    Args:
        model: a trained network that takes (B, 3, H, W) and gives logits, or a key of ``BACKBONES``.
        gate_points: names of modules behind whose outputs the gates sit; ``None``: those of ``gate_points_of(model)``.
        class_ids: classes to learn; row r of the gates is ``class_ids[r]``. ``None``: all.
        beta: weight of the gates; 0.02 is the paper's for ResNet-50 and DenseNet-121, the larger the fewer stay open.
        lr: length of a step of each layer's gates.
        threshold: above which a gate is open, in (0, 1).
        input_size: (C, H, W) that the network is fed with; ``None``: the published one, for an object (3, 224, 224).
        num_classes: outputs of the network; ``None``: as many as an object gives, 10 for a name.
        mean: per channel, for images in [0, 1]; ``None`` hands pixels on as they are.
        std: per channel; given together with ``mean``.
        class_names: names of the classes, for people.
        base_checkpoint: trained weights of the network, as in ``ImageClassifier``. A checkpoint of any classifier of
            ours, pruned or not, brings its network, ``mean``, ``std``, ``input_size`` and ``class_names`` along;
            ``model`` is then left aside, unless it is an object.
        num_others: how many other classes' sub-architectures each image of an evaluation is shown to.
        chunk_size: images in one pass at most, to bound memory; images of a class are not torn apart.
        gate_seed: a class's first gates are drawn from N(0, 1) by this plus its number, in any company.
        focus_rate: part of the pixels in the focus of ``predict``'s maps, in (0, 1].
        classifier_epochs: in the first epochs train the network itself, for data without trained weights.
        classifier_lr: of its SGD (momentum 0.9, weight decay 5e-4), which falls to zero by a cosine.

    Raises:
        ValueError: an argument is out of range; before a fit: a class without training images, training images of
            other classes, another number of classes in the data than the network has, ``16-mixed`` (which scales the
            loss) or weights in half precision.
        FileNotFoundError: ``base_checkpoint`` does not exist.

    Source:
        official code: all but the evaluation, which it lacks. Ours: many classes at once; first gates by class (there
        all masks depend on those of earlier classes); ``num_others``; ``classifier_epochs``. Epochs are the Trainer's:
        the official code trains 21 and reads those of the 20th.

    Example:
        >>> module = NAD("resnet20", input_size=[3, 32, 32], class_ids=[3, 7])
        >>> masks = module.export_masks()
        >>> list(masks), masks[7]["layer3.2"].shape
        ([3, 7], torch.Size([64]))
    """

    progress: Tensor
    row_of: Tensor

    def __init__(
        self,
        model: str | nn.Module = "resnet20",
        gate_points: list[str] | None = None,
        class_ids: list[int] | None = None,
        beta: float = 0.02,
        lr: float = 0.1,
        threshold: float = 0.5,
        input_size: list[int] | None = None,
        num_classes: int | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        class_names: list[str] | None = None,
        base_checkpoint: str | None = None,
        num_others: int = 3,
        chunk_size: int = 256,
        gate_seed: int = 233,
        focus_rate: float = 0.05,
        classifier_epochs: int = 0,
        classifier_lr: float = 0.1,
    ) -> None:
        trained = read_trained(base_checkpoint, "NAD")
        if trained is not None:
            model, num_classes = trained.network(model), trained.num_classes  # type: ignore[assignment]
            input_size = input_size or trained.settings.get("input_size")
        if model is None:
            raise ValueError("model: missing; the checkpoint is of a network given as an object: give model=network")
        network = described(model) if isinstance(model, dict) else model
        if gate_points is None and isinstance(model, dict) and isinstance(network, nn.Module):
            gate_points = block_points(network, input_size or [3, 224, 224])
        gate_points = _points_of(network, gate_points)
        class_ids = None if class_ids is None else [int(i) for i in class_ids]
        if input_size is None:
            input_size = [3, 224, 224] if isinstance(network, nn.Module) else list(find_backbone(network).input_size)
        if num_classes is None:
            num_classes = _outputs(network, gate_points, input_size) if isinstance(network, nn.Module) else 10
        super().__init__(
            backbone=network,
            num_classes=num_classes,
            mean=mean,
            std=std,
            input_size=input_size,
            class_names=class_names,
            base_checkpoint=base_checkpoint if trained is None else None,
        )
        if trained is not None:
            self.start_from_trained(trained)
        if isinstance(model, str | dict):  # what it was found to be
            self.hparams["model"] = model
        self.hparams.update(gate_points=list(gate_points), class_ids=class_ids, base_checkpoint=base_checkpoint)
        check_arguments(self.hparams)
        self.automatic_optimization = False
        self.class_ids = list(range(num_classes)) if class_ids is None else class_ids
        self._trained = {name for name, p in self.model.named_parameters() if p.requires_grad}  # not what is frozen
        if classifier_epochs and not self._trained:
            raise ValueError(f"classifier_epochs={classifier_epochs}: model is frozen already; call requires_grad_()")
        self._gate()
        for row, label in enumerate(self.class_ids):
            generator = torch.Generator().manual_seed(gate_seed + label)
            for logits in self.gate_logits:
                logits.data[row] = torch.randn(logits.shape[1], generator=generator)
        row_of = torch.full((num_classes,), -1)
        row_of[self.class_ids] = torch.arange(len(self.class_ids))
        self.register_buffer("row_of", row_of, persistent=False)
        self.register_buffer("progress", torch.zeros(len(self.class_ids), 3, dtype=torch.int64))
        gated: dict[str, Metric | MetricCollection] = {"selectivity": Selectivity()}
        gated |= {name: Rate() for name in ("own_top1", "other_top1", "false_own")}
        self.val_gated = MetricCollection(gated, prefix="val/", compute_groups=False)
        self.test_gated = self.val_gated.clone(prefix="test/")

    def _gate(self) -> None:
        """Put fresh gates at the network."""
        with torch.random.fork_rng(devices=[]):  # what is drawn here is replaced
            gated = GatedModel(
                self.model,
                self.hparams["gate_points"],
                len(self.class_ids),
                input_size=self.hparams["input_size"],
                threshold=self.hparams["threshold"],
            )
        if gated.num_classes != self.hparams["num_classes"]:
            raise ValueError(
                f"num_classes={self.hparams['num_classes']}, but the network gives {gated.num_classes} logits"
            )
        self._gated = (gated,)  # a tuple, so that the network is no submodule twice
        self.gate_logits = gated.gate_logits
        self._freeze()

    @property
    def gated(self) -> GatedModel:
        """The network with its gates; row r belongs to ``class_ids[r]``."""
        return self._gated[0]

    # -- the frozen network -------------------------------------------------------------------------------------------

    @property
    def trains_network(self) -> bool:
        """Whether this is one of the epochs in which the network itself is trained."""
        return self._stage == RunningStage.TRAINING and self.current_epoch < self.hparams["classifier_epochs"]

    def train(self, mode: bool = True) -> NAD:
        """Train or eval mode of the module; the network stays in eval mode once it is frozen."""
        super().train(mode)
        if hasattr(self, "_gated"):
            self._freeze()
        return self

    def _freeze(self) -> None:
        if self.model.training != self.trains_network:
            self.model.train(self.trains_network)
        for name, param in self.model.named_parameters():
            param.requires_grad_(self.trains_network and name in self._trained)

    def setup(self, stage: str) -> None:
        """Refuse data that do not fit the network or the classes."""
        data = getattr(self.trainer, "datamodule", None)
        classes, mine = getattr(data, "num_classes", None), self.hparams["num_classes"]
        if classes is not None and classes != mine:
            raise ValueError(
                f"model gives {mine} logits, the data has {classes} classes; give a network for these classes "
                "(num_classes, base_checkpoint), or the data that it was trained on, some of it by data.class_subset"
            )
        super().setup(stage)
        if stage == "fit":
            refuse_hooks(self.model)
            check_precision(str(self.trainer.precision))
            if callable(count := getattr(data, "class_counts", None)):
                check_counts(torch.as_tensor(count()), self.class_ids, self._named)

    def _named(self, label: int) -> str:
        name = self.class_name(label)
        return name if name == str(label) else f"{label} ({name})"

    def on_train_start(self) -> None:
        """Warn of random weights, of which nothing can be learnt, and of a run too short for the gates."""
        first, last = self.hparams["classifier_epochs"], self.trainer.max_epochs
        if not first:
            self._warn_if_untrained()
            return
        if self.hparams["base_checkpoint"] is not None:
            rank_zero_warn(
                f"classifier_epochs={first} trains the network of base_checkpoint on; 0 takes it apart as it is"
            )
        if last is not None and 0 < last <= first and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            rank_zero_warn(
                f"classifier_epochs={first} leaves none of max_epochs={last} for the gates: they stay as drawn"
            )

    # -- learning -----------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> list[Optimizer]:
        """The gates' step and, where the network is trained first, its SGD."""
        optimizers: list[Optimizer] = [NormalizedDescent(self.gate_logits, lr=self.hparams["lr"])]
        if self.hparams["classifier_epochs"]:
            trained = [param for name, param in self.model.named_parameters() if name in self._trained]
            optimizers.append(make_sgd(trained, self.hparams["classifier_lr"]))
        return optimizers

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor | None:  # type: ignore[override]
        """One step of the gates of the classes in the batch; in the first epochs perhaps one of the network."""
        self._freeze()
        found = self.optimizers()
        gates, *others = found if isinstance(found, list) else [found]
        if self.trains_network:
            return self._train_network(batch, batch_idx, others[0])
        label = batch["label"]
        rows = checked_rows(label, self.row_of, self.class_ids, self._named)
        fed, beta, chunk = self.as_fed(batch["image"]), self.hparams["beta"], self.hparams["chunk_size"]
        learned = set_gradients(self.gated, fed, label, rows, beta, chunk, self.objective)
        gates.step()
        gates.zero_grad()
        terms = {} if learned is None else self._note(learned)  # without any image, this process has no class left
        if self.trainer.world_size > 1:
            shared = [*self.gate_logits, self.progress]
            share_rows(shared, rows.unique(), self.global_rank, lambda row: self._named(self.class_ids[row]))
        bar = self.trainer.progress_bar_callback is not None
        for name, value in terms.items():
            self.log(f"train/{name}", value, prog_bar=bar and name == "loss", batch_size=max(1, len(label)))
        return terms.get("loss")

    def objective(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """What the gates minimise; override it for one of your own. Arguments and result are those of ``nad_loss``."""
        return nad_loss(*args, **kwargs)

    def _note(self, learned: Learned) -> dict[str, Tensor]:
        """Count what each class has seen; gives what is logged."""
        self.progress[learned.row, STEPS] += learned.active.long()
        self.progress[learned.row, SKIPPED] += (~learned.active).long()
        self.progress[learned.row, IMAGES] += learned.images
        open_gates = self.gated.open_gates()
        kept = sum(m[learned.row].sum() for m in open_gates) / (len(learned.row) * sum(m.shape[1] for m in open_gates))
        means = {name: getattr(learned, name)[learned.active] for name in ("loss", "ce", "mse")}
        shown = {name: values.mean() for name, values in means.items() if len(values)}
        return shown | {"skipped": (~learned.active).float().mean(), "kept_ratio": kept}

    def _train_network(self, batch: dict[str, Tensor], batch_idx: int, optimizer: Any) -> Tensor | None:
        steps = int(self.trainer.num_training_batches)
        done = (self.current_epoch * steps + batch_idx) / (self.hparams["classifier_epochs"] * steps)
        several = self.trainer.world_size > 1
        reduce = partial(self.trainer.strategy.reduce, reduce_op="mean") if several else None
        loss = self.loss(self(batch["image"]), batch) if len(batch["label"]) else None
        sgd_step(self.model, optimizer, loss, done, reduce)
        if loss is not None:
            bar = self.trainer.progress_bar_callback is not None
            self.log("train/loss", loss.detach(), prog_bar=bar, batch_size=len(batch["label"]))
        return None if loss is None else loss.detach()

    def on_train_end(self) -> None:
        """Name the classes of which no image came by, or the network got none right."""
        counts = list(zip(map(self._named, self.class_ids), self.progress.tolist(), strict=True))
        if self.progress.any() and (unseen := [name for name, row in counts if not row[IMAGES]]):
            rank_zero_warn(f"no training image of {shorten(unseen)} came by: the gates of these classes are as drawn")
        if never := [name for name, row in counts if row[SKIPPED] and not row[STEPS]]:
            rank_zero_warn(
                f"the network gets no training image right of {shorten(never)}: the gates of these classes are as they "
                "were drawn"
            )

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:  # type: ignore[override]
        """Update the figures; gives ``preds`` (of the network without gates) and ``own_hit`` for callbacks."""
        return self._evaluate_all(self.val_metrics, self.val_gated, batch)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:  # type: ignore[override]
        """As ``validation_step``."""
        return self._evaluate_all(self.test_metrics, self.test_gated, batch)

    def _evaluate_all(
        self, metrics: MetricCollection, gated: MetricCollection, batch: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        logits, label = self._evaluate(metrics, batch), batch["label"]
        hits = gated_hits(self.gated, self.as_fed(batch["image"]), label, self.class_ids, self.hparams["num_others"])
        own, other = hits.own_hit[hits.own], hits.other_hit[hits.asked]
        for name, hit in {"own_top1": own, "other_top1": other, "false_own": hits.false_own[hits.asked]}.items():
            gated[name].update(hit)
        gated["selectivity"].update(own, own=True)
        gated["selectivity"].update(other, own=False)
        for key, metric in gated.items(copy_state=False):
            self.log(key, metric, on_step=False, on_epoch=True, batch_size=max(1, len(label)))
        return {"preds": logits.argmax(1), "own_hit": hits.own_hit, "own": hits.own}

    def on_validation_epoch_end(self) -> None:
        """Log ``val/kept_ratio``."""
        self.log("val/kept_ratio", self.kept_ratio())

    def on_test_epoch_end(self) -> None:
        """Log ``test/kept_ratio``."""
        self.log("test/kept_ratio", self.kept_ratio())

    def kept_ratio(self) -> float:
        """Open gates of all classes and layers over all."""
        gates = self.gated.open_gates()
        return float(sum(int(m.sum()) for m in gates) / sum(m.numel() for m in gates))

    def export_masks(self) -> dict[int, dict[str, Tensor]]:
        """The sub-architectures: class -> gate point -> (C,) bool on the CPU, open channels."""
        gates = {name: m.cpu() for name, m in zip(self.gated.gate_points, self.gated.open_gates(), strict=True)}
        return {label: {name: m[row] for name, m in gates.items()} for row, label in enumerate(self.class_ids)}

    def row(self, class_id: int) -> int:
        """The row of a class's gates.

        Args:
            class_id: one of ``class_ids``.

        Raises:
            ValueError: it is not among them.
        """
        if class_id not in self.class_ids:
            raise ValueError(f"class_id={class_id} has no gates; there are those of {shorten(self.class_ids)}")
        return self.class_ids.index(class_id)

    def as_fed(self, image: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] as the network and ``gated`` take them."""
        return self.normalize(image).contiguous(memory_format=torch.channels_last)

    # -- the user's own pictures --------------------------------------------------------------------------------------

    @classmethod
    def add_cli_arguments(cls, parser: Any, entry: str) -> None:
        """``--class_id`` of ``predict`` and ``export``."""
        helps = {
            "predict": "whose sub-architecture looks at the pictures; left out, that of the predicted class",
            "export": "whose sub-architecture is exported; left out, the whole network",
        }
        if entry in helps:
            parser.add_argument("--class_id", type=int | None, default=None, help=helps[entry])

    view = staticmethod(largest_crop)  # of the user's pictures: all of it that the maps can show

    def prepare_inputs(self, paths: Sequence[str | Path], class_id: int | None = None) -> Iterable[dict[str, Tensor]]:
        """Pictures as batches for ``predict_step``.

        Args:
            paths: readable picture files.
            class_id: whose sub-architecture looks at them.

        Raises:
            ValueError: the class has no gates, or a file cannot be read.
        """
        row = None if class_id is None else self.row(class_id)
        batches = prepare_inputs(paths, self.hparams["input_size"], batch_size=16, view=self.view)
        if row is None:
            return batches
        return (batch | {"row": torch.full((len(batch["image"]),), row)} for batch in batches)

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> list[dict[str, Any]]:
        """What the network sees, what the sub-architectures of these classes say, and where one of them looks."""
        answers = super().predict_step(batch, batch_idx)
        if self._stage not in (None, RunningStage.PREDICTING):
            return answers
        if not answers:
            return []
        x = self.as_fed(batch["image"])
        labels = torch.tensor([answer["labels"] for answer in answers], device=x.device)
        own = own_scores(self.gated, x, labels, self.row_of).tolist()
        first = torch.tensor([self._best_known(answer["labels"]) for answer in answers])
        rows = batch.get("row", first).to(x.device)
        sheets = focus_sheets(self.gated, x, batch["image"], rows, self.hparams["focus_rate"])
        for answer, scores, row, sheet in zip(answers, own, rows.tolist(), sheets, strict=True):
            label = self.class_ids[row]
            answer |= {"own_scores": scores, "class_id": label, "class_name": self.class_name(label), "maps": sheet}
        return answers

    def _best_known(self, labels: Sequence[int]) -> int:
        """The row of the most likely class that has gates; else the first."""
        return next((self.class_ids.index(label) for label in labels if label in self.class_ids), 0)

    def draw(self, image: np.ndarray, prediction: dict[str, Any]) -> np.ndarray:
        """Where the sub-architecture looks, gate by gate from input to output, with what the network sees.

        Args:
            image: (H, W, 3) uint8 RGB; shown as the network is fed with it.
            prediction: one dict of ``predict_step``; without ``maps`` it is drawn as in ``ImageClassifier``.

        Returns:
            (H', W', 3) uint8 RGB.
        """
        if "maps" not in prediction:
            return super().draw(image, prediction)
        text = f"{prediction['names'][0]} {prediction['scores'][0]:.0%}; sub-architecture of {prediction['class_name']}"
        return caption(prediction["maps"].permute(1, 2, 0).numpy(), text)

    # -- out of Python ------------------------------------------------------------------------------------------------

    def sub_network(self, class_id: int) -> nn.Module:
        """The sub-architecture of a class as a network of its own, small where channels can be removed.

        Args:
            class_id: one of ``class_ids``.

        Returns:
            A new module, (N, C, H, W) as ``self.model`` takes them to logits (N, classes), equal to those of the
            network with the class's hard gates.

        Raises:
            ValueError: the class has no gates, or no open one at some point.
        """
        masks = self.gated.masks(self.row(class_id))
        return sub_network(self.model, masks, arch=self.arch, input_size=self.hparams["input_size"])

    def export_graphs(self, class_id: int | None = None) -> dict[str, ExportGraph]:
        """The graph ``classifier`` of the whole network, or of a class's sub-architecture, ``class_<id>``.

        Args:
            class_id: one of ``class_ids``.
        """
        if class_id is None:
            return super().export_graphs()
        return {f"class_{class_id}": self._graph_of(self.sub_network(class_id))}

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As in ``ImageClassifier``; a network given as an object is named as missing."""
        super().on_save_checkpoint(checkpoint)
        if self.arch is None and not is_description(self.hparams.get("model")):
            checkpoint["hyper_parameters"]["model"] = None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As in ``ImageClassifier``, for gates of the same classes."""
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint["hyper_parameters"]
        theirs, number = saved["class_ids"] or range(saved["num_classes"]), len(checkpoint["state_dict"]["progress"])
        if list(theirs) != self.class_ids or number != len(theirs):  # what a loader is given is in the file's place
            raise ValueError(
                f"class_ids={shorten(self.class_ids)}, but the checkpoint has the gates of {number} classes, of others "
                "or in another order; a fit of these classes begins anew"
            )

    def set_plan(self, plan: dict[str, Any] | None) -> None:
        """As in ``ImageClassifier``; the new network gets fresh gates."""
        super().set_plan(plan)
        if hasattr(self, "_gated"):
            self._gate()


def _points_of(model: str | nn.Module, gate_points: list[str] | None) -> list[str]:
    if gate_points is not None:
        return gate_points
    if isinstance(model, str):
        return gate_points_of(model)
    raise ValueError(
        "gate_points: missing; a network given as an object needs the names of the modules behind which its gates sit, "
        "such as GATE_POINTS['resnet50']"
    )


def _outputs(model: nn.Module, gate_points: Sequence[str], input_size: Sequence[int]) -> int:
    with torch.random.fork_rng(devices=[]):
        return GatedModel(model, gate_points, input_size=input_size).num_classes
