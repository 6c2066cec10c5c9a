"""OwnWords: the words that a module knows, and their vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lit_methods.functional.words import FIRST, PADDING, UNKNOWN, number_words, word_ids


class OwnWords:
    """Mixin before ``LightningModule``: words become vectors, those of a GloVe file or trained ones.

    The module learns its words from the data that it is first fitted to, and keeps them with their vectors in its
    checkpoint. From then on the data take the ids from the module, so a checkpoint can be tested on other data. Padding
    and unknown words are vectors of zeros.

    The class that takes it has the hyperparameters ``vocabulary``, ``word_dim``, ``max_words`` and ``train_words``.
    """

    hparams: Any
    trainer: Any
    device: torch.device
    dtype: Any
    words: nn.Embedding
    ids: dict[str, int]
    _widens = False  # words of a checkpoint that was started from, which those of the data join

    def set_vocabulary(self, words: Sequence[str], vectors: Tensor | None = None) -> None:
        """Know these words, and no others.

        Args:
            words: in the order of their ids.
            vectors: (2 + their number, ``word_dim``), the first two for padding and unknown words; ``None`` draws them,
                by torch's seed alone, however many numbers were drawn before: processes differ in that from a single
                one.

        Raises:
            ValueError: a word occurs twice, or vectors are of another shape.
        """
        ids = number_words(words)
        shape = (FIRST + len(words), self.hparams["word_dim"])
        if vectors is not None and tuple(vectors.shape) != shape:
            raise ValueError(f"vectors must be {shape}, two more than there are words, got {tuple(vectors.shape)}")
        if vectors is None:
            vectors = torch.randn(shape, generator=torch.Generator().manual_seed(torch.initial_seed()))
        self.words = nn.Embedding(*shape, _weight=vectors.clone()).to(self.device, self.dtype)
        self.words.weight.requires_grad_(self.hparams["train_words"] is not False)
        self.hparams["vocabulary"] = list(words) or None
        self.ids = ids

    def start_words(
        self, words: Sequence[str], vectors: Tensor, train_words: bool | None = None, max_words: int | None = None
    ) -> None:
        """Begin with the words of a trained module; in a fit, words of the data that it does not know join them.

        New vectors are drawn, for the words that are trained on, or, where vectors are not trained, those of the data's
        GloVe file. A vocabulary that was given stays as it is, with the trained vectors of the words that are known.

        Args:
            words: in the order of their ids.
            vectors: (2 + their number, ``word_dim``).
            train_words: whether they were trained, if nothing else is said.
            max_words: of the trained module, to which padding counts.
        """
        if self.hparams["train_words"] is None:
            self.hparams["train_words"] = train_words
        self.hparams["max_words"] = max_words or self.hparams["max_words"]
        self._widens = not self.ids
        if self._widens:
            self.set_vocabulary(words, vectors)
            return
        known, rows = number_words(words), self.words.weight.detach().clone()
        for word in self.ids.keys() & known.keys():
            rows[self.ids[word]] = vectors[known[word]]
        self.set_vocabulary([*self.ids], rows)

    def add_words(self, words: Sequence[str], vectors: Tensor) -> None:
        """Know more words, for this prediction or test.

        Args:
            words: new ones.
            vectors: (n, ``word_dim``), of the file that the others are from.

        Raises:
            ValueError: the module's vectors were trained, so that those of a file mean nothing to it.
        """
        if self.hparams["train_words"] is not False:
            raise ValueError("glove: the vectors of this checkpoint were trained with it; those of a file do not fit")
        known = self.hparams["vocabulary"] or []
        rows = torch.cat([self.words.weight.detach(), vectors.to(self.words.weight)])
        self.set_vocabulary([*known, *words], rows)

    def tokens_of(self, sentences: Sequence[str]) -> Tensor:
        """Ids of the words of sentences, (B, ``max_words``) int64: cut off, or filled up with padding.

        Args:
            sentences: clean ones, lower-case words with blanks between them.
        """
        length = self.hparams["max_words"]
        rows = [word_ids(sentence, self.ids, length) for sentence in sentences]
        return torch.tensor(rows, dtype=torch.int64, device=self.device).view(len(rows), length)

    def embedded(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (B, T, ``word_dim``) of words, and where there is a word at all (B, T).

        Args:
            tokens: (B, T) int64 ids.
        """
        return self.words(tokens) * (tokens > UNKNOWN)[..., None], tokens != PADDING

    def setup(self, stage: str) -> None:
        """Learn the words of the data, or tell the data the module's.

        Raises:
            ValueError: there are no words, vectors have another size, or the data cut sentences elsewhere.
        """
        super().setup(stage)  # type: ignore[misc]
        data: Any = getattr(self.trainer, "datamodule", None)
        if not hasattr(data, "use_vocabulary"):
            if stage == "fit" and not self.ids:
                raise ValueError(
                    "vocabulary=None: without a RefCOCODataModule give the words, in the order of their ids"
                )
        elif not self.ids:
            self._learn_words(data)
        else:
            self._refuse_other_lengths(data)
            widens = stage == "fit" and self._widens
            if widens and self.hparams["train_words"] is not False:
                self._join_words_of(data)
            elif widens or stage in ("validate", "test"):
                self._add_words_of(data)
            data.use_vocabulary(self.hparams["vocabulary"])

    def _refuse_other_lengths(self, data: Any) -> None:
        if data.max_words != self.hparams["max_words"]:
            raise ValueError(
                f"data.max_words={data.max_words}, but the module was trained with {self.hparams['max_words']}, "
                f"and padding counts: set data.max_words {self.hparams['max_words']}"
            )

    def _refuse_other_vectors(self, vectors: Tensor | None) -> None:
        if vectors is not None and vectors.shape[1] != self.hparams["word_dim"]:
            raise ValueError(
                f"word_dim={self.hparams['word_dim']}, but the vectors of data.glove have {vectors.shape[1]} numbers: "
                f"set model.word_dim {vectors.shape[1]}"
            )

    def _learn_words(self, data: Any) -> None:
        vectors = data.word_vectors
        self._refuse_other_vectors(vectors)
        if self.hparams["train_words"] is None:
            self.hparams["train_words"] = vectors is None
        self.hparams["max_words"] = data.max_words
        self.set_vocabulary(data.vocabulary, vectors)

    def _add_words_of(self, data: Any) -> None:
        """Frozen vectors say something of words, too, that the module was not trained with."""
        if self.hparams["train_words"] is not False or data.word_vectors is None:
            return
        self._refuse_other_vectors(data.word_vectors)
        new = [word for word in data.sentence_words if word not in self.ids]
        vectors = data.vectors_of(new)
        known = vectors.any(1)
        if known.any():
            self.add_words([word for word, there in zip(new, known.tolist(), strict=True) if there], vectors[known])

    def _join_words_of(self, data: Any) -> None:
        """Words that are trained on, with vectors that are yet to be trained, behind those of the checkpoint."""
        # not those of data.vocabulary, which a validation before the fit makes the module's
        if new := [word for word in data.training_words if word not in self.ids]:
            known = self.words.weight.detach()
            self.set_vocabulary([*self.ids, *new])
            with torch.no_grad():
                self.words.weight[: len(known)] = known

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the words of the checkpoint, whose vectors follow, and tell them the data.

        Raises:
            ValueError: the data cut sentences elsewhere.
        """
        super().on_load_checkpoint(checkpoint)  # type: ignore[misc]
        kept = checkpoint["hyper_parameters"]
        self.hparams["train_words"], self.hparams["max_words"] = kept["train_words"], kept["max_words"]
        data: Any = getattr(getattr(self, "_trainer", None), "datamodule", None)
        told = hasattr(data, "use_vocabulary")
        if told:
            self._refuse_other_lengths(data)
        if kept["vocabulary"] != self.hparams["vocabulary"]:
            self.set_vocabulary(kept["vocabulary"] or [])
            if told:
                data.use_vocabulary(kept["vocabulary"] or [])
        self.words.weight.requires_grad_(kept["train_words"] is not False)  # also where the words are the same
