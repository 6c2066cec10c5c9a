"""Pictures and sentences to boxes and masks as a graph that leaves Python."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_methods.contract import ExportGraph
from lit_methods.functional.words import PADDING, UNKNOWN
from lit_methods.mcn.functional import asnls, decode_boxes, round_boxes, select_top_box
from lit_methods.mcn.model import STRIDE


class UnrolledGRU(nn.Module):
    """A GRU of one bidirectional layer, step by step, with the same weights.

    The tracer takes it that a batch of ``nn.GRU`` has not one row.

    Args:
        gru: ``batch_first`` and ``bidirectional``, of one layer; its weights are shared, not copied.

    Source:
        The equations in the documentation of ``torch.nn.GRU``.

    Example:
        >>> gru = nn.GRU(3, 4, batch_first=True, bidirectional=True)
        >>> words = torch.rand(2, 5, 3)
        >>> torch.allclose(UnrolledGRU(gru)(words)[0], gru(words)[0], atol=1e-6)
        True
    """

    def __init__(self, gru: nn.GRU) -> None:
        super().__init__()
        if gru.num_layers != 1 or not gru.bidirectional or not gru.batch_first:
            raise ValueError("gru must have one layer, and be batch_first and bidirectional")
        self.input_size, self.hidden_size = gru.input_size, gru.hidden_size
        self.weights = nn.ParameterDict(dict(gru.named_parameters()))

    def forward(self, words: Tensor) -> tuple[Tensor, Tensor]:
        """(N, T, input_size) to (N, T, 2 hidden_size), and the last states (2, N, hidden_size)."""
        forward, last = self._direction(words, "")
        back, first = self._direction(words.flip(1), "_reverse")
        return torch.cat([forward, back.flip(1)], 2), torch.stack([last, first])

    def _direction(self, words: Tensor, which: str) -> tuple[Tensor, Tensor]:
        given, held, given_bias, held_bias = (
            self.weights[f"{name}_l0{which}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        inputs = F.linear(words, given, given_bias)  # of all steps at once
        state = words.new_zeros(words.shape[0], self.hidden_size)
        states = []
        for step in range(words.shape[1]):
            reset, update, new = inputs[:, step].chunk(3, 1)
            held_reset, held_update, held_new = F.linear(state, held, held_bias).chunk(3, 1)
            keep = torch.sigmoid(update + held_update)
            candidate = torch.tanh(new + torch.sigmoid(reset + held_reset) * held_new)
            state = (1 - keep) * candidate + keep * state
            states.append(state)
        return torch.stack(states, 1), state


class GroundingGraph(nn.Module):
    """Pictures and sentences to the best box, its confidence and the mask's probabilities.

    Args:
        network: ``MCNet``, of which a copy is taken.
        words: vectors by id, copied, too.
        anchors: (A, 2) widths and heights in pixels.
        size: side of the pictures.
        mode: how box and confidence change the mask, as in ``asnls``.

    Source:
        Section 2.8: the chain of ``postprocess_masks`` up to the probabilities at the size of the network's input.

    Example:
        >>> from lit_methods.mcn.model import MCNet
        >>> network = MCNet("tiny", word_dim=6, hidden=16, dim=8).eval()
        >>> graph = GroundingGraph(network, nn.Embedding(9, 6), torch.tensor([[20.0, 30.0]] * 3), 64, "hard")
        >>> boxes, scores, masks = graph(torch.zeros(2, 3, 64, 64), torch.tensor([[2, 3, 0], [8, 1, 4]]))
        >>> boxes.shape, scores.shape, masks.shape
        (torch.Size([2, 4]), torch.Size([2]), torch.Size([2, 64, 64]))
    """

    anchors: Tensor

    def __init__(self, network: nn.Module, words: nn.Embedding, anchors: Tensor, size: int, mode: str) -> None:
        super().__init__()
        self.network, self.words = copy.deepcopy(network), copy.deepcopy(words)
        self.register_buffer("anchors", anchors.detach().clone())
        self.size, self.mode = size, mode
        for part in list(self.network.modules()):
            for name, child in part.named_children():
                if isinstance(child, nn.GRU):
                    setattr(part, name, UnrolledGRU(child))

    def forward(self, image: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Find what each sentence refers to in its picture.

        Args:
            image: (B, 3, S, S) letterboxed, RGB in [0, 1].
            tokens: (B, T) int64.

        Returns:
            ``boxes`` (B, 4) xyxy in pixels of ``image``, not rounded, ``scores`` (B,), and ``masks`` (B, S, S), which
            are above the module's threshold inside, and may be above 1.
        """
        vectors = self.words(tokens) * (tokens > UNKNOWN)[..., None]
        found = self.network(image, vectors, tokens != PADDING)
        boxes, scores = select_top_box(*decode_boxes(found["rec_raw"], self.anchors, STRIDE))
        masks = F.interpolate(found["seg_logits"].sigmoid(), (self.size, self.size), mode="bilinear")[:, 0]
        return boxes, scores, asnls(masks, round_boxes(boxes, self.size), scores, mode=self.mode)


class OwnGraphs:
    """Mixin: ``export`` of the network, its words and what is made of its answers, for sentences of a fixed length.

    The class that takes it has ``model``, ``words``, ``anchors``, ``size``, and the hyperparameters ``asnls`` and
    ``max_words``.
    """

    def export_graphs(self) -> dict[str, ExportGraph]:
        """One graph, ``grounding``: ``image`` (B, 3, S, S), letterboxed, RGB in [0, 1], and ``tokens`` (B, T) int64 to
        ``boxes`` (B, 4), xyxy in pixels of ``image``, ``scores`` (B,) and ``masks`` (B, S, S), inside where above
        ``threshold``.

        Tokens are ids of words in the order of ``vocabulary`` from 2 on, 1 for other words, and 0 for padding.

        Raises:
            ValueError: the module has no words yet.
        """
        module: Any = self
        if not module.ids:
            raise ValueError("vocabulary=None: the module knows no words yet; export a trained one")
        graph = GroundingGraph(module.model, module.words, module.anchors, module.size, module.hparams["asnls"]).eval()
        image = torch.zeros(2, 3, module.size, module.size, device=module.device)
        known = torch.arange(module.hparams["max_words"], device=module.device) % len(module.ids)
        tokens = torch.stack([known, known.flip(0)]) + UNKNOWN + 1
        batch = {0: torch.export.Dim("batch")}
        axes = {"image": batch, "tokens": batch}
        pictures = "RGB in [0, 1], letterboxed on grey"
        return {"grounding": ExportGraph(graph, (image, tokens), axes, ("boxes", "scores", "masks"), pictures)}
