"""OwnSentences: find what sentences refer to in the user's own pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lit_methods.functional.coco_masks import compressed_rle, rle_to_mask
from lit_methods.functional.glove import read_glove
from lit_methods.functional.letterbox import letterbox_boxes, letterbox_mask, letterbox_params
from lit_methods.functional.modes import evaluating
from lit_methods.functional.options import CommandOptions
from lit_methods.functional.words import clean_sentence, split_words
from lit_methods.inference import Picture, as_image
from lit_methods.mcn.drawing import draw_grounding
from lit_methods.mcn.own_pictures import LISTS, OwnBatches, OwnPicture, listed_texts, own_pictures, sentence_batches
from lit_methods.mcn.own_words import OwnSentence, own_sentence, warn_of

NO_SENTENCE = (
    "there is no sentence: in Python give module.ground(picture, 'the man in red'), on the command "
    "line --input a.jpg --text 'the man in red'"
)


class OwnSentences(CommandOptions):
    """Mixin: ``predict`` finds what sentences refer to in pictures.

    ``--input`` are pictures and folders, each searched for every ``--text``, or lists of pictures and sentences. The
    run's directory gets for each picture and sentence a row in ``predictions.csv``, an entry in ``predictions.json``,
    ``pictures/<name>_<number>.png``, drawn, and ``masks/<name>_<number>.png``, black and white, of the picture's own
    size; numbers of a picture's sentences begin at 1.

    The class that takes it has ``predict_step``, ``tokens_of``, ``add_words``, ``ids`` and ``size``.
    """

    hparams: Any
    trainer: Any
    device: torch.device
    ids: dict[str, int]
    size: int
    predict_step: Any  # annotations alone: a method here would stand before the class's own
    tokens_of: Any
    add_words: Any
    _pictures: Sequence[OwnPicture] = ()  # of this prediction

    @classmethod
    def add_cli_arguments(cls, parser: Any, entry: str) -> None:
        """The options of ``predict``, beside those of other mixins."""
        super().add_cli_arguments(parser, entry)
        if entry == "predict":
            helps = f"what to look for, once for each sentence; lists as --input ({', '.join(LISTS)}) bring their own"
            parser.add_argument("--text", action="append", type=str, default=None, help=helps)
            helps = "file of word vectors, for words that the checkpoint has none of"
            parser.add_argument("--glove", type=str | None, default=None, help=helps)

    @staticmethod
    def require_sentences(batch: Mapping[str, Any]) -> None:
        """Refuse a batch of pictures alone.

        Args:
            batch: of ``predict_step``.

        Raises:
            ValueError: there are no ``tokens``.
        """
        if "tokens" not in batch:
            raise ValueError(NO_SENTENCE)

    def ground(self, image: Picture, sentences: str | Sequence[str]) -> list[dict[str, Any]]:
        """What sentences refer to in one picture.

        Args:
            image: a path, a PIL image, an RGB array (H, W, 3) uint8, or a tensor (3, H, W) in [0, 1].
            sentences: one or several, as one would type them; the picture is looked at once for all of them.

        Returns:
            A dict for each sentence, as ``predict_step`` gives it; with ``file`` where ``image`` is a path.

        Raises:
            ValueError: there is no sentence, one has no words or none that the vocabulary has, or the picture cannot be
                read.
        """
        texts = [sentences] if isinstance(sentences, str) else list(sentences)
        if not texts:
            raise ValueError("sentences is empty; give one such as 'the man in red'")
        asked = [self._ask(text, "sentences") for text in texts]
        warn_of(asked, self.hparams["max_words"])
        pixels = (as_image(image) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        file = str(image) if isinstance(image, str | Path) else None
        results: list[dict[str, Any]] = []
        with evaluating(self):  # type: ignore[arg-type]
            for batch in sentence_batches(Image.fromarray(pixels), asked, self.size, self.tokens_of, file):
                there = {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in batch.items()}
                results += self.predict_step(there, 0)
        return results

    def _ask(self, text: str, where: str) -> OwnSentence:
        return own_sentence(text, self.ids, self.hparams["max_words"], where)

    def sift_inputs(
        self, paths: Sequence[str | Path], text: Sequence[str] | None = None, glove: str | None = None
    ) -> tuple[list[OwnPicture], dict[Path, str]]:
        """The user's pictures that can be searched, and of the others the reason; the arguments are those of
        :meth:`prepare_inputs`."""
        texts = list(text or ())
        if glove is not None:
            self._learn(glove, paths, texts)
        pictures, faults = own_pictures(paths, texts, self._ask)
        sentences = {sentence.text: sentence for picture in pictures for sentence in picture.sentences}
        warn_of(sentences.values(), self.hparams["max_words"])
        return pictures, faults

    def _learn(self, glove: str, paths: Sequence[str | Path], texts: Sequence[str]) -> None:
        """Take the vectors of words that are asked for and not known from a file."""
        asked = {word for text in (*texts, *listed_texts(paths)) for word in split_words(clean_sentence(text))}
        new = [word for word in sorted(asked) if word not in self.ids]
        words, vectors = read_glove(glove, new)
        if vectors.shape[1] != self.hparams["word_dim"]:
            raise ValueError(
                f"glove={glove!r} has vectors of {vectors.shape[1]} numbers, the checkpoint's have "
                f"{self.hparams['word_dim']}; name the file that it was trained with"
            )
        if words:
            self.add_words(words, torch.from_numpy(vectors))

    def prepare_inputs(
        self,
        paths: Sequence[str | Path | OwnPicture],
        text: Sequence[str] | None = None,
        glove: str | None = None,
    ) -> OwnBatches:
        r"""The user's pictures and sentences as batches for ``predict_step``.

        Args:
            paths: pictures and folders of them; lists, ``.tsv`` or ``.txt``, with lines of a picture, relative to the
                list's folder, a tab, and a sentence; or what ``sift_inputs`` made of them.
            text: sentences that the pictures and folders are searched for.
            glove: file of word vectors, the one that the module was trained with, for words of the sentences that it
                does not know yet; only where the module's own vectors are from such a file.

        Raises:
            FileNotFoundError: a path does not exist.
            ValueError: a picture cannot be read, a sentence is missing, has no words or none that is known, or another
                argument does not fit.
        """
        pictures = [path for path in paths if isinstance(path, OwnPicture)]
        if others := [path for path in paths if not isinstance(path, OwnPicture)]:
            pictures, faults = self.sift_inputs(others, text, glove)
            if faults:
                raise ValueError(next(iter(faults.values())))
        self._pictures = pictures
        return OwnBatches(pictures, self.size, self.tokens_of)

    def on_predict_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Draw and write what was found in the user's pictures.

        Results are held until the end, so the masks of large pictures, which are on disk now, are packed: ``rle``, and
        its number of pixels, ``mask_area``, take the place of ``pred_mask``.
        """
        if not isinstance(batch, dict) or "own" not in batch:
            return
        picture, folder = self._pictures[batch["own"]], Path(self.trainer.default_root_dir)
        for name in ("pictures", "masks"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for number, result in enumerate(outputs, batch["first"]):
            name = f"{picture.name}_{number + 1}.png"
            Image.fromarray(self.draw(batch["pixels"], result)).save(folder / "pictures" / name)
            mask = result["pred_mask"].numpy()
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "masks" / name)
            result |= _packed(result.pop("pred_mask"))
            result |= {"unknown_words": list(picture.sentences[number].unknown), "mask_file": f"masks/{name}"}

    def draw(self, image: np.ndarray, prediction: dict[str, Any]) -> np.ndarray:
        """The picture with box, mask and sentence, and below them the true ones.

        Args:
            image: (H, W, 3) uint8 RGB: the picture itself, or as the network sees it, letterboxed.
            prediction: one dict of ``predict_step``; with ``box`` in pixels of ``image`` and ``mask`` (h, w), these are
                the truth.

        Returns:
            (H', W', 3) uint8 RGB.
        """
        if (found := prediction.get("pred_mask")) is None:
            found = rle_to_mask(prediction["rle"]["counts"], *prediction["rle"]["size"])
        mask, box, truth = np.asarray(found), prediction["pred_box"], prediction.get("mask")
        if mask.shape != image.shape[:2] == (self.size, self.size):
            box = letterbox_boxes(box, letterbox_params(mask.shape[1], mask.shape[0], self.size))
            mask = letterbox_mask(mask, self.size)
            truth = None if truth is None else letterbox_mask(np.asarray(truth), self.size)
        return draw_grounding(
            image,
            box,
            mask,
            score=prediction["score"],
            text=prediction["text"],
            truth_box=prediction.get("box"),
            truth_mask=None if truth is None else np.asarray(truth),
        )

    def rows(self, prediction: dict[str, Any]) -> list[dict[str, Any]]:
        """One row: ``text``, ``x1``, ``y1``, ``x2``, ``y2``, ``score``, ``mask_area`` in pixels, ``agreement``, and
        where the mask was written ``mask_file``.

        Args:
            prediction: one dict of ``predict_step``.
        """
        told = _told(prediction)
        row = {"text": told["text"], **dict(zip(("x1", "y1", "x2", "y2"), told["box"], strict=True))}
        row |= {key: told[key] for key in ("score", "mask_area", "agreement")}
        return [row | {key: told[key] for key in ("mask_file",) if key in told}]

    def record(self, prediction: dict[str, Any]) -> dict[str, Any]:
        """``text``, ``width`` and ``height`` of the picture, ``box`` x1, y1, x2, y2 in its pixels, ``score``,
        ``agreement``, ``mask_area``, of own pictures ``unknown_words`` and ``mask_file``, and ``mask``, as COCO packs
        it.

        Args:
            prediction: one dict of ``predict_step``.
        """
        return _told(prediction)


def _packed(mask: Tensor) -> dict[str, Any]:
    rle = {"size": list(mask.shape), "counts": compressed_rle(mask.numpy().astype(np.uint8))}
    return {"rle": rle, "mask_area": int(mask.sum())}


def _told(prediction: dict[str, Any]) -> dict[str, Any]:
    """One result as plain values: a hundredth of a pixel, and no more digits of float32 than there are."""
    found = prediction if "rle" in prediction else prediction | _packed(prediction["pred_mask"])
    height, width = found["rle"]["size"]
    told = {"text": found["text"], "width": width, "height": height}
    told["box"] = [round(value, 2) for value in found["pred_box"].tolist()]
    told |= {key: round(found[key], 4) for key in ("score", "agreement")} | {"mask_area": found["mask_area"]}
    return told | {key: found[key] for key in ("unknown_words", "mask_file") if key in found} | {"mask": found["rle"]}
