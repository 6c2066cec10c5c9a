"""Half precision, where sums and logarithms need more."""

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """The same numbers, half precision as float32.

    Args:
        x: floating point.

    Example:
        >>> at_least_float32(torch.zeros(1, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def refuse_half_steps(precision: str, who: str) -> None:
    """Refuse the precisions in which a search that makes its own steps would lose them.

    Args:
        precision: of the Trainer.
        who: the class that makes the steps, for the message.

    Raises:
        ValueError: it is one of them.

    Example:
        >>> refuse_half_steps("bf16-mixed", "DARTSSearch")
    """
    if precision == "16-mixed":
        raise ValueError(f"precision=16-mixed scales the loss, of which {who} knows nothing; take bf16-mixed")
    if precision in ("16-true", "bf16-true"):
        raise ValueError(f"precision={precision} loses the small steps of the search; take bf16-mixed")
