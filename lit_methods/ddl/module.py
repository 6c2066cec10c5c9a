"""DDL: a face recogniser whose hard samples are pulled up to its easy ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from lit_methods.backbones.weights import untrained
from lit_methods.contract import log_rate
from lit_methods.ddl.functional import DDLOutput
from lit_methods.ddl.model import ArcFaceHead, CosFaceHead, DistributionDistillationLoss
from lit_methods.ddl.recognition import FaceRecognition
from lit_methods.functional.arguments import check_ranges
from lit_methods.functional.precision import at_least_float32
from lit_methods.functional.processes import gather_rows

Batch = dict[str, dict[str, Any]]
MARGINS = {"arcface": 0.5, "cosface": 0.4}


class DDL(FaceRecognition):
    """Train an embedding network by a margin softmax and the distribution distillation loss (DDL, arXiv 2002.03662).

    Easy samples are the teacher, hard ones the students, and the same network embeds both. The distributions of
    similarities of each hard branch are pulled to those of the easy one, while an order loss keeps positives above
    negatives. At inference nothing is added.

    Batch: a dict of branches such as ``easy`` and ``hard``, each with ``image`` (b, 3, H, W) in [0, 1], ``label`` (b,)
    and ``pair``, two tensors like ``image``. The b images of a branch show b identities, the b pairs two pictures of
    one identity each. Without pairs, or with one branch, it is the margin softmax alone. Similarities are those of the
    embeddings of all processes together, so that several processes give the gradient of one.

    Logs ``train/loss``, ``train/softmax_loss``, ``train/ddl_loss``, ``train/pos_kl``, ``train/neg_kl``,
    ``train/order`` (means over the students, not weighted), ``train/lr`` and, by branch, ``train/gap_<branch>``: mean
    positive minus mean negative similarity; in evaluations what ``FaceRecognition`` logs.

    Args:
        backbone: as in ``FaceRecognition``.
        backbone_args: likewise.
        num_classes: identities of the training set, one head for all branches; or a list, one head for each branch of
            the data in their order, each with its own numbering.
        easy: name of the teacher's branch.
        hard: names of the students'; ``None`` is all other branches of the data.
        ddl_weight: of the distillation loss beside the softmax. 0 is the control: plain ArcFace on the same batches.
        head: ``"arcface"`` or ``"cosface"``.
        scale: of the cosines.
        margin: in radians for ``"arcface"``; ``None`` is 0.5, or 0.4 for ``"cosface"``.
        pos_kl_weight: lambda 1.
        neg_kl_weight: lambda 2.
        order_weight: lambda 3.
        gamma: of the histograms' kernel, exp(-gamma (s - t)^2).
        negatives: ``"hardest"``, or ``"official"`` as in the code, see ``hardest_negative_similarity``.
        positive_threshold: positives up to here are left out; ``None`` keeps all.
        detach_teacher: whether the teacher's distributions are fixed in the KL terms.
        lr: learning rate of SGD.
        milestones: epochs after which the rate is multiplied by ``lr_factor``; ``None`` is [1].
        lr_factor: see there.
        momentum: of SGD.
        weight_decay: of SGD.
        decay_norms: whether batch norms, PReLUs and biases are decayed, too.
        mean: per channel, for images in [0, 1]; ``None`` hands pixels on as they are.
        std: per channel; given together with ``mean``.
        input_size: (C, H, W) that the network is fed with.
        base_checkpoint: as in ``FaceRecognition``; heads of a checkpoint of ours are taken, too, where they fit.
        flip: as in ``FaceRecognition``.
        fars: likewise.

    Raises:
        ValueError: an argument is out of range; before a fit: data without branches, of other names or with more
            identities, or nothing to distil from.
        FileNotFoundError: ``base_checkpoint`` does not exist.

    Source:
        DDL, arXiv 2002.03662, and its official code. The code scales the gradient of its distillation loss by the
        number of GPUs, which are 8: ``ddl_weight=8`` imitates that, here the factor is always 1. The head is ArcFace as
        in the paper, not the CurricularFace of the released configuration. Ours: all samples are negatives
        (``negatives``) and all positives count (``positive_threshold``); norms are not decayed, as the code means it.

    Example:
        >>> module = DDL("tiny", num_classes=5, backbone_args={"width": 4}, input_size=[3, 48, 48])
        >>> module.heads[0].kernel.shape
        torch.Size([64, 5])
    """

    heads: nn.ModuleList
    ddl_factor: float = 1.0  # on ddl_weight, for callbacks

    def __init__(
        self,
        backbone: str | nn.Module = "iresnet50",
        num_classes: int | list[int] = 0,
        easy: str = "easy",
        hard: list[str] | None = None,
        ddl_weight: float = 1.0,
        backbone_args: dict[str, Any] | None = None,
        head: Literal["arcface", "cosface"] = "arcface",
        scale: float = 64.0,
        margin: float | None = None,
        pos_kl_weight: float = 0.1,
        neg_kl_weight: float = 0.02,
        order_weight: float = 0.5,
        gamma: float = 50.0,
        negatives: Literal["hardest", "official"] = "hardest",
        positive_threshold: float | None = None,
        detach_teacher: bool = False,
        lr: float = 1e-3,
        milestones: list[int] | None = None,
        lr_factor: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        decay_norms: bool = False,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        input_size: list[int] | None = None,
        base_checkpoint: str | None = None,
        flip: bool = True,
        fars: list[float] | None = None,
    ) -> None:
        super().__init__(backbone, backbone_args, mean, std, input_size, None, flip, fars)
        self._check_training()
        self.heads = self.make_heads()
        self.distillation = DistributionDistillationLoss(
            pos_kl_weight=pos_kl_weight,
            neg_kl_weight=neg_kl_weight,
            order_weight=order_weight,
            gamma=gamma,
            negatives=negatives,
            positive_threshold=positive_threshold,
            detach_teacher=detach_teacher,
        )
        if base_checkpoint is not None:
            self._start_from(base_checkpoint)

    def make_heads(self) -> nn.ModuleList:
        """New classifiers: one for all branches, or one each; none where the data are not there yet."""
        head = {"arcface": ArcFaceHead, "cosface": CosFaceHead}[self.hparams["head"]]
        margin = MARGINS[self.hparams["head"]] if self.hparams["margin"] is None else self.hparams["margin"]
        sizes = [size for size in _listed(self.hparams["num_classes"]) if size]
        return nn.ModuleList(head(self.num_features, size, self.hparams["scale"], margin) for size in sizes)

    def _start_from(self, source: str) -> dict[str, Tensor]:
        tensors = super()._start_from(source)
        kernels = {name.removeprefix("heads."): t for name, t in tensors.items() if name.startswith("heads.")}
        mine = self.heads.state_dict()
        if kernels and {k: v.shape for k, v in kernels.items()} == {k: v.shape for k, v in mine.items()}:
            self.heads.load_state_dict(kernels)
        elif kernels:
            rank_zero_info(f"base_checkpoint={source!r} is of other identities: classifiers begin anew")
        return tensors

    def _check_training(self) -> None:
        rules: dict[str, tuple[Callable[[float], bool], str]] = {
            "ddl_weight": (lambda v: v >= 0, "must not be negative"),
            "lr": (lambda v: v > 0, "must be positive"),
            "lr_factor": (lambda v: 0 < v <= 1, "must lie in (0, 1]"),
            "momentum": (lambda v: 0 <= v < 1, "must lie in [0, 1)"),
            "weight_decay": (lambda v: v >= 0, "must not be negative"),
        }
        check_ranges(self.hparams, rules)
        if self.hparams["head"] not in MARGINS:
            raise ValueError(f"head={self.hparams['head']!r} must be one of {', '.join(MARGINS)}")
        classes, names = self.hparams["num_classes"], [self.hparams["easy"], *(self.hparams["hard"] or [])]
        if any(size < 0 or size == 1 for size in _listed(classes)):
            raise ValueError(f"num_classes={classes} must be at least 2: there is nobody to tell apart")
        if len(set(names)) < len(names):
            raise ValueError(f"hard={self.hparams['hard']} must be other branches than easy={names[0]!r}, each once")
        if isinstance(classes, list) and len(classes) < len(names):
            raise ValueError(
                f"num_classes={classes} has {len(classes)} entries for the {len(names)} branches {', '.join(names)}: "
                "give one for each branch of the data, or a single number for a shared head"
            )

    def setup(self, stage: str) -> None:
        """Learn the evaluation sets, and before a fit refuse data that do not fit."""
        super().setup(stage)
        data: Any = getattr(self.trainer, "datamodule", None)
        if stage != "fit":
            return
        if not self.heads:
            raise ValueError("num_classes=0: give the number of identities in the training set")
        if data is None:
            return
        if not hasattr(data, "branch_names") or not data.branch_names:
            raise ValueError(
                f"{type(data).__name__} gives no easy and hard branches; use FaceFolderDataModule, or "
                'Market1501DataModule with train_on="branches"'
            )
        branches = self.branches(data.branch_names)
        paired = getattr(data, "pairs", True)
        if self.hparams["ddl_weight"] and (len(branches) == 1 or not paired):
            lack = "there is no hard branch" if len(branches) == 1 else "data.pairs is false"
            raise ValueError(
                f"ddl_weight={self.hparams['ddl_weight']} has nothing to distil: {lack}; set ddl_weight to 0 for the "
                "softmax alone"
            )
        theirs, mine = _listed(data.num_classes), _listed(self.hparams["num_classes"])
        if len(theirs) != len(mine) or any(want > have for want, have in zip(theirs, mine, strict=True)):
            raise ValueError(
                f"model.num_classes={self.hparams['num_classes']}, but the data have {data.num_classes}; leave "
                "num_classes out to take it from the data"
            )
        if len(self.heads) > 1:  # one that nothing reaches would keep several processes waiting
            for name, head in zip(data.branch_names, self.heads, strict=True):
                head.requires_grad_(name in branches)

    def on_fit_start(self) -> None:
        """Warn of a network that knows nothing: it is no teacher."""
        if self.hparams["ddl_weight"] and untrained(self.model):
            rank_zero_warn(
                "the network has no trained weights, and an untrained one is no teacher: give model.base_checkpoint, "
                "such as a checkpoint of the same network with ddl_weight 0"
            )

    def branches(self, given: Sequence[str]) -> list[str]:
        """The names of the branches, the teacher first.

        Args:
            given: names of the data's.

        Raises:
            ValueError: one that is asked for is not among them.
        """
        easy, hard = self.hparams["easy"], self.hparams["hard"]
        names = [easy, *([name for name in given if name != easy] if hard is None else hard)]
        if missing := [name for name in names if name not in given]:
            raise ValueError(f"easy and hard name {missing[0]!r}, but the data have the branches {', '.join(given)}")
        return names

    # -- learning -----------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """The loss of one batch, and the similarities of each branch for callbacks."""
        names = self.branches(list(batch))
        parts, found = self.losses(self.model, self.heads, batch, names, self.hparams["ddl_weight"])
        self.log_training(parts, sum(len(batch[name]["label"]) for name in names))
        return {"loss": parts["loss"], "similarities": similarities(names, found)}

    def losses(
        self, model: nn.Module, heads: nn.ModuleList, batch: Batch, names: Sequence[str], ddl_weight: float
    ) -> tuple[dict[str, Tensor], DDLOutput | None]:
        """``loss`` and its parts, and what the distillation found; override it for losses of your own.

        Args:
            model: the network; called once.
            heads: one for all branches, or one each.
            batch: of a training step.
            names: of the branches that count, the teacher first.
            ddl_weight: of the distillation loss.
        """
        paired = all("pair" in batch[name] for name in names)
        images = [batch[name]["image"] for name in names]
        if paired:
            images += [image for name in names for image in batch[name]["pair"]]
        features = self.features(model, torch.cat(images))
        features = at_least_float32(features)  # all that follows is float32
        sizes = [len(image) for image in images]
        singles = features.split(sizes)[: len(names)]
        order = list(batch)  # that of the data, and of heads where there are several
        softmax = sum(
            F.cross_entropy(heads[order.index(name) % len(heads)](rows, label := batch[name]["label"]), label)
            for rows, name in zip(singles, names, strict=True)
        )
        parts: dict[str, Tensor] = {"softmax_loss": softmax}  # type: ignore[dict-item]
        if not paired or len(names) == 1:
            return {"loss": parts["softmax_loss"], **parts}, None
        found = self.distil(features, sizes, [batch[name]["label"] for name in names])
        parts |= {
            "loss": parts["softmax_loss"] + self.ddl_factor * ddl_weight * found.loss,
            "ddl_loss": found.loss,
            "pos_kl": found.pos_kl.mean(),
            "neg_kl": found.neg_kl.mean(),
            "order": found.order.mean(),
        }
        gaps = zip(names, found.pos_sims, found.neg_sims, strict=True)
        return parts | {f"gap_{name}": pos.mean() - neg.mean() for name, pos, neg in gaps if len(pos)}, found

    def distil(self, features: Tensor, sizes: list[int], labels: list[Tensor]) -> DDLOutput:
        """The distillation loss over the embeddings of all processes.

        Each process has the same loss, and the gradient of what it gathered comes back once from every process; DDP's
        mean over them is then the gradient of a single process with all samples.

        Args:
            features: (N, D) of this process: the images of all branches, then first and second pictures by branch.
            sizes: how many of each.
            labels: of the images, by branch.
        """
        everywhere = gather_rows(features).view(-1, *features.shape)  # (processes, N, D)
        parts = [part.flatten(0, 1) for part in everywhere.split(sizes, dim=1)]
        count = len(labels)
        pairs = list(zip(parts[count::2], parts[count + 1 :: 2], strict=True))
        return self.distillation(parts[:count], pairs, [gather_rows(label) for label in labels])

    def log_training(self, parts: dict[str, Tensor], length: int) -> None:
        """Log the parts of a loss over so many images, and the rate."""
        bar = self.trainer.progress_bar_callback is not None
        for name, value in parts.items():
            self.log(f"train/{name}", value.detach(), prog_bar=bar and name == "loss", batch_size=length)
        log_rate(self)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """SGD; norms, PReLUs and biases without decay unless ``decay_norms``; the rate falls at the milestones."""
        decay = self.hparams["weight_decay"]
        rates = {True: decay, False: decay if self.hparams["decay_norms"] else 0.0}
        groups = [{"params": self._parameters_of(kernels), "weight_decay": rate} for kernels, rate in rates.items()]
        optimizer = SGD([g for g in groups if g["params"]], lr=self.hparams["lr"], momentum=self.hparams["momentum"])
        return {"optimizer": optimizer, "lr_scheduler": LambdaLR(optimizer, self.rate)}

    def rate(self, epoch: int) -> float:
        """Factor on the learning rate in an epoch."""
        milestones = [1] if self.hparams["milestones"] is None else self.hparams["milestones"]
        return self.hparams["lr_factor"] ** sum(epoch >= milestone for milestone in milestones)

    def _parameters_of(self, kernels: bool) -> list[nn.Parameter]:
        """Those of convolutions, linear layers and heads; or norms, PReLUs and biases, which are vectors."""
        return [p for p in self.parameters() if p.requires_grad and (p.ndim > 1) == kernels]


def similarities(names: Sequence[str], found: DDLOutput | None) -> dict[str, tuple[Tensor, Tensor]]:
    """Positive and negative similarities by branch; nothing where there was no distillation.

    Args:
        names: of the branches, the teacher first.
        found: of the step.

    Example:
        >>> similarities(["easy"], None)
        {}
    """
    if found is None:
        return {}
    return {n: (p.detach(), q.detach()) for n, p, q in zip(names, found.pos_sims, found.neg_sims, strict=True)}


def _listed(classes: int | list[int]) -> list[int]:
    return classes if isinstance(classes, list) else [classes]
