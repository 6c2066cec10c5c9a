"""The classifier of AD-Cluster's source pre-training; its encoder has moved to ``lit_methods.backbones.reid``."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from lit_methods.backbones.reid import ENCODERS as ENCODERS, RESNETS as RESNETS, ReIDEncoder as ReIDEncoder


class IdentityHead(nn.Module):
    """Features to logits over the identities of the source; only its pre-training has it.

    Args:
        num_features: D of the features.
        num_classes: identities.
        kind: ``"fc"``, U's: linear, batch norm, ReLU, dropout, linear; ``"bnneck"``: batch norm and a linear layer
            without bias.
        dropout: of ``"fc"``, in [0, 1).
        init_std: standard deviation of the initial weights of the linear layers of ``"fc"``.

    Raises:
        ValueError: an unknown kind, or a number out of range.

    Source:
        U's code (section 3.1); of its second linear layer nothing is known but its size, it begins like the first.

    Example:
        >>> import torch
        >>> IdentityHead(8, 5)(torch.rand(4, 8)).shape, IdentityHead(8, 5, kind="bnneck")(torch.rand(4, 8)).shape
        (torch.Size([4, 5]), torch.Size([4, 5]))
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        kind: Literal["fc", "bnneck"] = "fc",
        dropout: float = 0.1,
        init_std: float = 1e-3,
    ) -> None:
        super().__init__()
        if num_features < 1 or num_classes < 1:
            raise ValueError(f"num_features={num_features} and num_classes={num_classes} must be at least 1")
        if kind not in ("fc", "bnneck"):
            raise ValueError(f"kind={kind!r} must be 'fc' or 'bnneck'")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} must lie in [0, 1)")
        if kind == "bnneck":
            self.layers = nn.Sequential(nn.BatchNorm1d(num_features), nn.Linear(num_features, num_classes, bias=False))
            return
        self.layers = nn.Sequential(
            nn.Linear(num_features, num_features, bias=False),
            nn.BatchNorm1d(num_features),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(num_features, num_classes),
        )
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=init_std)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        """(N, num_features) to logits (N, num_classes)."""
        return self.layers(features)
