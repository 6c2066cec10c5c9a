"""DDL's loss as a module, and the margin heads that it is added to."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lit_methods.ddl.functional import DDLOutput, check_options, ddl_loss
from lit_methods.ddl.similarity import check_embeddings, check_labels, unit_norm
from lit_methods.functional.precision import at_least_float32

_RADICAND = 1e-12  # of the sine: its gradient is infinite where the cosine is 1


class DistributionDistillationLoss(nn.Module):
    """``ddl_loss`` with its options.

    Args:
        pos_kl_weight: lambda 1.
        neg_kl_weight: lambda 2.
        order_weight: lambda 3.
        nodes: of the histograms, numbers or a tensor (R,); ``None`` are 1000 from 0 to 0.999.
        gamma: of the Gaussian kernel.
        eps: added to all probabilities.
        negatives: ``"hardest"`` or ``"official"``.
        positive_threshold: positives up to here are left out.
        detach_teacher: the KL terms give no gradient to the teacher's branch.

    Raises:
        ValueError: an option outside its range.

    Source:
        DDL, arXiv 2002.03662. The nodes are no part of the state, so that checkpoints load across settings.

    Example:
        >>> loss = DistributionDistillationLoss(pos_kl_weight=1.0)
        >>> x = torch.eye(2)
        >>> loss([x, x], [(x, x), (x, x)]).loss
        tensor(-2.)
    """

    nodes: Tensor | None

    def __init__(
        self,
        pos_kl_weight: float = 0.1,
        neg_kl_weight: float = 0.02,
        order_weight: float = 0.5,
        nodes: Sequence[float] | Tensor | None = None,
        gamma: float = 50.0,
        eps: float = 1e-9,
        negatives: str = "hardest",
        positive_threshold: float | None = None,
        detach_teacher: bool = False,
    ) -> None:
        super().__init__()
        if nodes is not None and not isinstance(nodes, Tensor):
            nodes = torch.tensor(nodes, dtype=torch.get_default_dtype())
        check_options(pos_kl_weight, neg_kl_weight, order_weight, nodes, gamma, eps, negatives)
        self.register_buffer("nodes", nodes, persistent=False)
        self.pos_kl_weight, self.neg_kl_weight, self.order_weight = pos_kl_weight, neg_kl_weight, order_weight
        self.gamma, self.eps, self.negatives = gamma, eps, negatives
        self.positive_threshold, self.detach_teacher = positive_threshold, detach_teacher

    def forward(
        self,
        neg: Sequence[Tensor],
        pos: Sequence[tuple[Tensor, Tensor]],
        neg_labels: Sequence[Tensor] | None = None,
    ) -> DDLOutput:
        """Embeddings by branch, the teacher's first, to losses and similarities; see ``ddl_loss``."""
        return ddl_loss(
            neg,
            pos,
            self.pos_kl_weight,
            self.neg_kl_weight,
            self.order_weight,
            self.nodes,
            self.gamma,
            self.eps,
            self.negatives,
            self.positive_threshold,
            self.detach_teacher,
            neg_labels,
        )


class _MarginHead(nn.Module):
    """Scaled cosines between embeddings and one direction per class; subclasses lower that of the target."""

    def __init__(self, in_features: int, num_classes: int, scale: float, margin: float) -> None:
        super().__init__()
        for name, count in (("in_features", in_features), ("num_classes", num_classes)):
            if count < 1:
                raise ValueError(f"{name}={count} must be at least 1")
        if not scale > 0:
            raise ValueError(f"scale={scale} must be above 0; 64 is usual")
        self.in_features, self.num_classes, self.scale, self.margin = in_features, num_classes, scale, margin
        self.kernel = nn.Parameter(torch.empty(in_features, num_classes))
        nn.init.normal_(self.kernel, std=0.01)

    def forward(self, embeddings: Tensor, labels: Tensor | None = None) -> Tensor:
        """Embeddings (B, in_features) of any norm to logits (B, num_classes), float32 or float64, also under autocast.

        Without labels, (B,) int64, there is no margin. On a CPU labels outside of the classes are a ``ValueError``;
        elsewhere looking would wait for the device, whose own assertion stops the run.
        """
        check_embeddings(embeddings, "embeddings")
        if embeddings.shape[1] != self.in_features:
            raise ValueError(
                f"embeddings have {embeddings.shape[1]} features, but in_features={self.in_features}; make them equal"
            )
        if labels is not None:
            check_labels(labels, embeddings, "labels", "embeddings")
            if labels.device.type == "cpu" and len(labels) and not torch.compiler.is_compiling():
                self._check_range(labels)
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings, kernel = at_least_float32(embeddings), at_least_float32(self.kernel)
            dtype = torch.promote_types(embeddings.dtype, kernel.dtype)
            cosines = (unit_norm(embeddings.to(dtype)) @ unit_norm(kernel.to(dtype), dim=0)).clamp(-1, 1)
            if labels is not None:
                index = labels.long()[:, None]
                cosines = cosines.scatter(1, index, self._lowered(cosines.gather(1, index)))
            return self.scale * cosines

    @abstractmethod
    def _lowered(self, target: Tensor) -> Tensor:
        """Cosines (B, 1) of the targets, made smaller by the margin."""

    def _check_range(self, labels: Tensor) -> None:
        low, high = (int(end) for end in labels.aminmax())
        if low < 0 or high >= self.num_classes:
            raise ValueError(
                f"labels go from {low} to {high}, but num_classes={self.num_classes}; number the identities from 0 to "
                f"{self.num_classes - 1}"
            )


class ArcFaceHead(_MarginHead):
    """Scaled cosines with an additive angular margin on the target.

    Args:
        in_features: D of the embeddings.
        num_classes: C.
        scale: s.
        margin: m, in radians, from 0 to below pi.
        easy_margin: no margin where the target's cosine is not above 0.

    Raises:
        ValueError: an argument outside its range. From ``forward``: shapes or labels that do not fit.

    Source:
        ArcFace as in DDL's official code: ``cos(theta + m)``, and ``cos(theta) - m sin(pi - m)`` where theta + m would
        pass pi. Ours: ``1 - cos^2`` is at least 1e-12, so that the gradient of the sine is finite.

    Example:
        >>> head = ArcFaceHead(2, 2, scale=10.0)
        >>> _ = head.kernel.data.copy_(torch.eye(2))
        >>> head(torch.tensor([[3.0, 4.0]]))
        tensor([[6., 8.]], grad_fn=<MulBackward0>)
        >>> head(torch.tensor([[3.0, 4.0]]), torch.tensor([0]))
        tensor([[1.4301, 8.0000]], grad_fn=<MulBackward0>)
    """

    def __init__(
        self, in_features: int, num_classes: int, scale: float = 64.0, margin: float = 0.5, easy_margin: bool = False
    ) -> None:
        if not 0 <= margin < math.pi:
            raise ValueError(f"margin={margin} must be an angle from 0 to below pi; 0.5 is usual")
        super().__init__(in_features, num_classes, scale, margin)
        self.easy_margin = easy_margin

    def _lowered(self, target: Tensor) -> Tensor:
        sine = (1 - target.square()).clamp(min=_RADICAND).sqrt()
        turned = target * math.cos(self.margin) - sine * math.sin(self.margin)
        if self.easy_margin:
            return torch.where(target > 0, turned, target)
        pi_less_m = math.pi - self.margin
        return torch.where(target > math.cos(pi_less_m), turned, target - self.margin * math.sin(pi_less_m))


class CosFaceHead(_MarginHead):
    """Scaled cosines with an additive margin on the target's cosine.

    Args:
        in_features: D of the embeddings.
        num_classes: C.
        scale: s.
        margin: m, not negative.

    Raises:
        ValueError: an argument outside its range. From ``forward``: shapes or labels that do not fit.

    Source:
        CosFace as in DDL's official code.

    Example:
        >>> head = CosFaceHead(2, 2, scale=10.0)
        >>> _ = head.kernel.data.copy_(torch.eye(2))
        >>> head(torch.tensor([[3.0, 4.0]]), torch.tensor([0]))
        tensor([[2.0000, 8.0000]], grad_fn=<MulBackward0>)
    """

    def __init__(self, in_features: int, num_classes: int, scale: float = 64.0, margin: float = 0.4) -> None:
        if not margin >= 0:
            raise ValueError(f"margin={margin} must not be negative; 0.4 is usual")
        super().__init__(in_features, num_classes, scale, margin)

    def _lowered(self, target: Tensor) -> Tensor:
        return target - self.margin
