"""RefCOCO, RefCOCO+ and RefCOCOg: pictures, and sentences that refer to something in them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from datamodules.demo.refcoco import write_refcoco
from datamodules.demo.refer_scenes import SyntheticReferDataset as SyntheticReferDataset
from datamodules.loaders import EvaluationLoader, loader_options, ready
from datamodules.refcoco_files import SPLITS, find_refs, resolve_dataset, splits_to_test
from datamodules.refcoco_samples import FullBatchSampler, ReferringImages, ReferringViews
from datamodules.refcoco_targets import Target, read_targets
from datamodules.refcoco_words import Vocabulary, WordVectors
from datamodules.samplers import ResumableLoader, ShardSampler, refuse_replaced_samplers
from datamodules.transforms import to_float
from lit_methods.functional.coco_masks import (
    mask_to_rle as mask_to_rle,
    polygons_to_mask as polygons_to_mask,
    rle_to_mask as rle_to_mask,
)
from lit_methods.functional.glove import read_glove as read_glove
from lit_methods.functional.pictures import require_files
from lit_methods.functional.processes import gather_objects
from lit_methods.functional.suggestions import shorten
from lit_methods.functional.words import FIRST, split_words

IMAGES = "images/train2014"


class RefCOCODataModule(LightningDataModule):
    """RefCOCO, RefCOCO+ or RefCOCOg (Yu et al., ECCV 2016; Mao et al., CVPR 2016), or own data in their layout.

    A training batch has ``image`` (B, 3, S, S) float32 in [0, 1], letterboxed to S = ``size``, ``tokens`` (B, T) int64
    ids of words, T = ``max_words``, ``box`` (B, 4) float32, xyxy in letterboxed pixels, ``mask`` (B, 1, S, S) uint8 of
    0 and 1, and ``index`` (B,) int64, the number of the ref. An epoch goes through the refs, not the sentences, and
    takes one of a ref's sentences by seed, epoch and this number alone; its last batch is filled up with its first
    refs. Pictures are not changed otherwise: sentences say left and right.

    A batch of an evaluation has a row for every sentence of ``eval_batch_size`` pictures, see
    :class:`~datamodules.refcoco_samples.ReferringImages`: the rows of a picture are neighbours, so that a network need
    look at it once only.

    The layout is the original one: in ``root`` ``<dataset>/instances.json``, ``<dataset>/refs(<split_by>).p`` or
    ``.json``, and ``images/train2014/COCO_train2014_<number>.jpg``; see :mod:`datamodules.refcoco_files`.

    With ``glove``, the vocabulary is all words of the data set's sentences that this file has, whose vectors are
    :attr:`word_vectors`. Without it, the words of the training sentences, whose vectors are to be trained. The other
    words are unknown, and counted. A module that was trained before tells its own words by :meth:`use_vocabulary`.

    Sentences of more than ``max_words`` words are cut off. Sentences without words are kept in evaluations, and not
    drawn in training. Both are counted (:meth:`summary`).

    Args:
        root: holds the folders.
        dataset: ``"refcoco"``, ``"refcoco+"`` or ``"refcocog"``, or another name of these, see
            :func:`~datamodules.refcoco_files.resolve_dataset`.
        split_by: who split it: ``"unc"``, ``"google"`` or ``"umd"``; ``None`` is ``"umd"`` for RefCOCOg, else
            ``"unc"``.
        image_dir: folder of the pictures; ``None`` is ``images/train2014`` in ``root``.
        glove: word vectors in GloVe's text format, plain or compressed by gzip; what is needed of them is kept in
            ``.cache`` in ``root``, where that can be written to.
        size: side of the letterboxed pictures, a multiple of 32.
        max_words: words of a sentence; 15 for RefCOCO and RefCOCO+ and 20 for RefCOCOg in MCN's paper.
        batch_size: refs in a batch of training, per process.
        num_workers: worker processes per loader; 0 loads in the main process.
        eval_batch_size: pictures in a batch of evaluation, per process.
        test_split: ``"testA"``, ``"testB"``, ``"test"``, ``"val"``; ``None`` is the first test split that there is by
            this rule, or ``"val"``.
        seed: decides the order of training and which sentence is taken.
        in_memory: keep letterboxed training pictures; for small sets, in each worker process.
        on_bad_image: ``raise`` stops at a training picture that cannot be read and names it; ``skip`` warns once per
            file, takes the next ref, and counts (:attr:`bad_images`, :meth:`summary`). Evaluation always stops.
        demo: write a small set of drawn shapes to ``root`` where the data set is not there; it shares its pictures with
            other such sets.

    Attributes:
        max_words: as given.
        size: as given.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     root = write_refcoco(Path(folder, "refer"), images={"train": 2, "val": 1, "testA": 1})
        ...     data = RefCOCODataModule(str(root), size=64, max_words=8, batch_size=2, num_workers=0)
        ...     data.setup("fit")
        ...     batch = next(iter(data.train_dataloader()))
        >>> batch["image"].shape, batch["tokens"].shape, batch["mask"].shape
        (torch.Size([2, 3, 64, 64]), torch.Size([2, 8]), torch.Size([2, 1, 64, 64]))
    """

    def __init__(
        self,
        root: str = "data/refer",
        dataset: str = "refcoco",
        split_by: str | None = None,
        image_dir: str | None = None,
        glove: str | None = None,
        size: int = 416,
        max_words: int = 15,
        batch_size: int = 35,
        num_workers: int = 2,
        eval_batch_size: int = 8,
        test_split: str | None = None,
        seed: int = 0,
        in_memory: bool = False,
        on_bad_image: Literal["raise", "skip"] = "raise",
        demo: bool = False,
    ) -> None:
        super().__init__()
        at_least_1 = {"max_words": max_words, "batch_size": batch_size, "eval_batch_size": eval_batch_size}
        for name, value in at_least_1.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if num_workers < 0:
            raise ValueError(f"num_workers must be 0 (load in the main process) or more, got {num_workers}")
        if size < 32 or size % 32:
            raise ValueError(f"size must be a multiple of 32, got {size}; 416 is that of the paper")
        if on_bad_image not in ("raise", "skip"):
            raise ValueError(f'on_bad_image must be "raise" or "skip", got {on_bad_image!r}')
        self.dataset, self.split_by = resolve_dataset(dataset, split_by)
        self.test_split = _test_split(self.dataset, self.split_by, test_split)
        self.root, self.demo = Path(root), demo
        self.image_dir = self.root / IMAGES if image_dir is None else Path(image_dir)
        self.size, self.max_words = size, max_words
        self.batch_size, self.eval_batch_size, self.num_workers = batch_size, eval_batch_size, num_workers
        self.seed, self.in_memory, self.on_bad_image = seed, in_memory, on_bad_image
        self._vectors = None if glove is None else WordVectors(Path(glove), self.root / ".cache")
        self._targets: dict[str, list[Target]] = {}  # split to what is in it
        self._words: Vocabulary | None = None
        self._train: ReferringViews | None = None
        self._evaluated: dict[str, ReferringImages] = {}

    @property
    def input_size(self) -> list[int]:
        """Channels, height and width of a letterboxed picture."""
        return [3, self.size, self.size]

    @property
    def vocabulary(self) -> list[str]:
        """The words in the order of their ids, which begin at 2; 0 is padding and 1 an unknown word.

        Raises:
            RuntimeError: before :meth:`setup`.
        """
        return list(self._known.words)

    @property
    def word_vectors(self) -> Tensor | None:
        """Vectors of padding, of an unknown word (both zeros) and of the vocabulary, ``(V + 2, E)`` float32.

        ``None`` without ``glove``: then they are to be trained.

        Raises:
            RuntimeError: before :meth:`setup`.
        """
        words = self._known.words
        if self._vectors is None:
            return None
        vectors = self._vectors.of(words)
        return torch.cat([torch.zeros(FIRST, vectors.shape[1]), vectors])

    @property
    def sentence_words(self) -> list[str]:
        """All words of the data set's sentences, known or not, sorted.

        Raises:
            RuntimeError: before :meth:`setup`.
        """
        self._known  # noqa: B018 - raises
        return _words_of(self._sentences())

    @property
    def training_words(self) -> list[str]:
        """All words of the training sentences, sorted, whatever the vocabulary is by now.

        Raises:
            RuntimeError: before :meth:`setup`.
        """
        self._known  # noqa: B018 - raises
        return _words_of(self._sentences("train"))

    @property
    def bad_images(self) -> list[str]:
        """Training pictures skipped so far by this process and its workers; after a fit, by all processes."""
        return [] if self._train is None else self._train.bad_files()

    def use_vocabulary(self, words: Sequence[str]) -> None:
        """Take the words of a module that was trained before; call it before a loader is iterated.

        Args:
            words: in the order of their ids, which begin at 2.

        Raises:
            RuntimeError: before :meth:`setup`.
            ValueError: a word comes twice.
        """
        known = self._known
        if list(words) != known.words:
            known.use(words)
            self._report_unknown("the vocabulary of the module")

    def vectors_of(self, words: Sequence[str]) -> Tensor:
        """Vectors of ``glove``, ``(n, E)`` float32, zeros for words that it does not have.

        Args:
            words: any.

        Raises:
            ValueError: there is no ``glove``.
        """
        if self._vectors is None:
            raise ValueError("glove=None has no vectors of words; name a file in GloVe's text format")
        return self._vectors.of(words)

    def prepare_data(self) -> None:
        """Look for files and folders; with ``demo`` write the set first.

        Raises:
            FileNotFoundError: something is missing; names it and how to get it.
            ValueError: ``demo`` meets a folder with something else in it.
        """
        if self.demo and not (self.root / self.dataset).exists():
            write_refcoco(self.root, self.dataset, self.split_by)
        self._require_annotations()
        if not self.image_dir.is_dir():
            raise FileNotFoundError(
                f"there is no folder of pictures {str(self.image_dir)!r}. Unpack COCO's train2014.zip there, or name "
                "another in image_dir."
            )
        if self._vectors is not None and not self._vectors.path.is_file():
            self._vectors.found([])  # says how to get it

    def setup(self, stage: str) -> None:
        """Read the annotations; no picture is opened, but those that this stage needs must be there.

        Raises:
            FileNotFoundError: a file or a picture is missing.
            ValueError: the annotations or the word vectors have a fault, or there is nothing to train or test on.
        """
        refuse_replaced_samplers(self.trainer)
        if self._words is None:
            self._read()
        known = self._known
        if stage == "fit" and self._train is None:
            self._train = ReferringViews(
                self.image_dir, self._some("train"), known, self.size, self.seed, self.on_bad_image == "skip",
                self.in_memory,
            )  # fmt: skip
        split = "val" if stage in ("fit", "validate") else self.test_split
        if split not in self._evaluated and (stage != "fit" or self._targets.get(split)):
            self._evaluated[split] = ReferringImages(self.image_dir, self._some(split), known, self.size)

    def train_dataloader(self) -> ResumableLoader:
        """Refs in random order by (seed, epoch), resumable after any batch.

        Raises:
            RuntimeError: before ``setup("fit")``.
        """
        train = ready(self._train, self, "the training refs", "fit")
        options = loader_options(self.batch_size, self.num_workers, self.seed, persistent=True)
        loader = ResumableLoader(train, sampler=FullBatchSampler(train, self.batch_size, self.seed), **options)
        loader.trainer = self.trainer
        return loader

    def val_dataloader(self) -> EvaluationLoader | list[EvaluationLoader]:
        """All sentences of the validation split, picture by picture, each once over all ranks; perhaps no loader."""
        if self._words is not None and not self._targets.get("val"):
            return []
        return self._evaluation_loader("val", "fit", persistent=True)

    def test_dataloader(self) -> EvaluationLoader:
        """All sentences of ``test_split``, picture by picture, each once over all ranks."""
        return self._evaluation_loader(self.test_split, "test")

    def predict_dataloader(self) -> EvaluationLoader:
        """As :meth:`test_dataloader`."""
        return self._evaluation_loader(self.test_split, "predict")

    def evaluation_sentences(self, stage: Literal["val", "test"] = "test") -> list[str]:
        """The sentences of a stage in the order of ``index``.

        Args:
            stage: which.

        Raises:
            RuntimeError: before :meth:`setup`.
        """
        return self._images("val" if stage == "val" else self.test_split, stage).sentences

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Turn the pictures from uint8 into float32 in [0, 1] on the device."""
        return batch | {"image": to_float(batch["image"])}  # masks stay as they are

    def summary(self) -> dict[str, float | str | list]:
        """Refs, sentences and words of the data set, what was cut off or left out, and the files that were skipped."""
        found: dict[str, float | str | list] = {
            "data/dataset": self.dataset,
            "data/split_by": self.split_by,
            "data/test_split": self.test_split,
        }
        for split, targets in self._targets.items():
            found[f"data/{split}_refs"] = len(targets)
            found[f"data/{split}_sentences"] = sum(len(target.sentences) for target in targets)
        if self._words is not None:
            unknown = self._words.unknown(self._sentences())
            found |= {
                "data/vocabulary": len(self._words.words),
                "data/unknown_words": len(unknown),
                "data/unknown_word_uses": sum(unknown.values()),
                "data/unknown_word_list": list(unknown),
                "data/truncated_sentences": len(self._truncated()),
                "data/empty_sentences": self._empty(),
            }
        return found | {"data/bad_images": len(self.bad_images), "data/bad_image_files": self.bad_images}

    def teardown(self, stage: str) -> None:
        """Tell all processes what each of them could not read."""
        if self._train is not None and self._train.skip:
            found = gather_objects(torch.nonzero(self._train.bad).flatten())
            self._train.bad[torch.cat(found)] = True

    @property
    def _known(self) -> Vocabulary:
        if self._words is None:
            raise RuntimeError("RefCOCODataModule has not read its sentences yet: call setup first")
        return self._words

    def _require_annotations(self) -> None:
        folder = self.root / self.dataset
        missing = [] if (folder / "instances.json").is_file() else ["instances.json"]
        if find_refs(folder, self.split_by) is None:
            missing.append(f"refs({self.split_by}).p (or .json)")
        if missing:
            problem = "lacks" if folder.is_dir() else "does not exist; it should hold"
            raise FileNotFoundError(
                f"root={str(self.root)!r}: {str(folder)!r} {problem} {' and '.join(missing)}. Unpack "
                f"{self.dataset}.zip of https://github.com/lichengunc/refer there; demo=True writes a drawn set."
            )

    def _read(self) -> None:
        """Read the refs of all splits, whose words are the vocabulary, and say what was found."""
        self._require_annotations()
        self._targets = read_targets(self.root / self.dataset, self.split_by, SPLITS[self.dataset][self.split_by])
        counts = [
            f"{split} {len(targets)} refs with {sum(len(target.sentences) for target in targets)} sentences"
            for split, targets in self._targets.items()
        ]
        rank_zero_info(f"{self.dataset} split by {self.split_by}: {', '.join(counts)}; tests are on {self.test_split}")
        if self._vectors is None:
            words = _words_of(self._sentences("train"))
        else:
            words = self._vectors.found(_words_of(self._sentences()))
            if not words:
                raise ValueError(
                    f"glove: {str(self._vectors.path)!r} has none of the words of {self.dataset}; name a file of "
                    "English words in lower case"
                )
        self._words = Vocabulary(words, self.max_words)
        self._report_unknown("the vocabulary" if self._vectors is None else repr(str(self._vectors.path)))
        if cut := self._truncated():
            rank_zero_info(
                f"sentences of more than max_words={self.max_words} words: {len(cut)}, of up to {max(cut)} words; the "
                "rest of them is left out"
            )
        if empty := self._empty():
            rank_zero_info(f"sentences without words: {empty}; they are evaluated, but not trained on")

    def _report_unknown(self, source: str) -> None:
        unknown = self._known.unknown(self._sentences())
        if unknown:
            rank_zero_info(
                f"words of the sentences that are not in {source} and count as unknown: {len(unknown)}, used "
                f"{sum(unknown.values())} times: {shorten(unknown, 10)}"
            )

    def _sentences(self, *splits: str) -> list[str]:
        chosen = splits or tuple(self._targets)
        return [said for split in chosen for target in self._targets.get(split, ()) for said in target.sentences]

    def _truncated(self) -> list[int]:
        """Numbers of words of the sentences that are too long."""
        lengths = [len(split_words(sentence)) for sentence in self._sentences()]
        return [length for length in lengths if length > self.max_words]

    def _empty(self) -> int:
        return sum(not split_words(sentence) for sentence in self._sentences())

    def _some(self, split: str) -> list[Target]:
        """What is in a split, whose pictures are there."""
        targets = self._targets.get(split, [])
        if not targets:
            there = ", ".join(self._targets) or "none at all"
            raise ValueError(
                f"{self.dataset} split by {self.split_by} has no refs in the split {split!r}, but in {there}; choose "
                "another test_split or split_by"
            )
        silent = [target.ref_id for target in targets if not any(map(str.strip, target.sentences))]
        if split == "train" and silent:
            raise ValueError(
                f"{len(silent)} refs to train on have no sentence with a word, such as ref_id={silent[0]} of "
                f"{str(self.root / self.dataset)!r}; give them one or take them out"
            )
        require_files(self.image_dir, list(dict.fromkeys(target.file for target in targets)), f"the split {split!r}")
        return targets

    def _images(self, split: str, stage: str) -> ReferringImages:
        return ready(self._evaluated.get(split), self, "these sentences", stage)

    def _evaluation_loader(self, split: str, stage: str, persistent: bool = False) -> EvaluationLoader:
        images = self._images(split, stage)
        options = loader_options(self.eval_batch_size, self.num_workers, self.seed, persistent)
        loader = EvaluationLoader(images, sampler=ShardSampler(images), **options)
        loader.in_step = True
        return loader


def _words_of(sentences: Sequence[str]) -> list[str]:
    return sorted({word for sentence in sentences for word in split_words(sentence)})


def _test_split(dataset: str, split_by: str, test_split: str | None) -> str:
    known = splits_to_test(dataset, split_by)
    if test_split is None:
        return (*known, "val")[0]
    if test_split not in (*known, "val"):
        choices = ", ".join((*known, "val"))
        raise ValueError(f"test_split={test_split!r} is no split of {dataset} by {split_by}; choose one of {choices}")
    return test_split
