"""Batches of P identities with K pictures each, for losses that compare pictures of a batch with one another."""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from datamodules.draws import ORDER, hash64, permutation
from datamodules.samplers import ResumableBatchSampler, ResumableSampler
from lit_methods.functional.draws import purpose

Keys = list[tuple[int, ...]]

PICK = purpose("identity_batches/pick")
STYLE = purpose("identity_batches/style")
STEPS = purpose("identity_batches/steps")


class PKSampler(ResumableBatchSampler[Keys]):
    """Make batches of ``p`` identities with ``k`` pictures each; each item is a whole batch.

    A batch is a list of ``(epoch, number, position)``, the pictures of an identity one after the other. ``number``
    counts the places of all batches and ranks of an epoch, so that a picture that comes twice can be augmented in two
    ways. Positions labelled -1 never come.

    In an epoch each identity comes once. Identities are shuffled by (seed, epoch) and dealt out over the ranks, whole;
    what is missing in a rank's last batch is filled up from its first ones. Where a rank has fewer identities than
    ``p``, batches have so many; where it would have fewer than two, every rank takes all identities. Of an identity the
    first ``k`` pictures of a permutation are taken; if it has fewer, they are repeated in turn.

    Args:
        labels: ``(N,)`` identity of each position of the training set, -1 for none; the same on all ranks.
        p: identities in a batch of this process.
        k: pictures of an identity in a batch.
        seed: together with the epoch it decides order and choice.
        num_replicas: number of ranks; ``None`` asks ``torch.distributed``.
        rank: this rank; ``None`` asks ``torch.distributed``.

    Attributes:
        p: identities in a batch, at most the argument.

    Raises:
        ValueError: ``rank`` is not below ``num_replicas``, ``p`` is below 2 or ``k`` below 1, or there are fewer than
            two identities.

    Source:
        open-reid's ``RandomIdentitySampler``. There an identity of few pictures is drawn with replacement and may lack
        some of them, here all come equally often. It knows no ranks.

    Example:
        >>> labels = np.array([7, 7, -1, 8, 8, 8])
        >>> (batch,) = PKSampler(labels, p=2, k=2, num_replicas=1, rank=0)
        >>> labels[[position for _, _, position in batch]].tolist()
        [8, 8, 7, 7]
    """

    generated = 0

    def __init__(
        self,
        labels: NDArray[np.int64],
        p: int,
        k: int,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        super().__init__(seed, num_replicas, rank)
        labels = np.asarray(labels, np.int64)
        if p < 2:
            raise ValueError(f"p must be at least 2, got {p}: a batch with one identity has no negatives")
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        rows = np.argsort(labels, kind="stable")
        rows = rows[labels[rows] >= 0]
        self._ids, first = np.unique(labels[rows], return_index=True)
        if len(self._ids) < 2:
            raise ValueError(
                f"labels has {len(self._ids)} identities besides -1; it needs two, as a batch with one has no negatives"
            )
        self._members = np.split(rows, first[1:])
        self._dealt = len(self._ids) >= 2 * self.num_replicas
        replicas = self.num_replicas if self._dealt else 1
        self.p, self.k = min(p, len(self._ids) // replicas), k
        self._steps = math.ceil(math.ceil(len(self._ids) / replicas) / self.p)

    @property
    def sizes(self) -> dict[str, int]:
        """What decides the batches; the loader compares it on resume."""
        return {"batch_size": self.p * self.k, "k": self.k, "generated": self.generated}

    def __len__(self) -> int:
        return self._steps

    def batches(self, epoch: int, start: int = 0) -> Iterator[Keys]:
        """The batches of an epoch from number ``start`` on."""
        mine = permutation(len(self._ids), ORDER, self.seed, epoch)
        if self._dealt:
            mine = mine[self.rank :: self.num_replicas]
        mine = np.resize(mine, self._steps * self.p)  # repeats from the front
        for step in range(start, self._steps):
            visit = step * self.num_replicas + self.rank
            members = [self._members[number] for number in mine[step * self.p : (step + 1) * self.p]]
            first = visit * self.p * self.k
            keys = (key for group in self._groups(members, epoch, visit) for key in group)
            yield [(epoch, first + place, *key) for place, key in enumerate(keys)]

    def _groups(self, members: list[NDArray[np.int64]], epoch: int, visit: int) -> list[list[tuple[int, ...]]]:
        """``k`` positions of each identity, each in a tuple with what else its key says."""
        return [[(position,) for position in group] for group in self._pick(members, self.k, PICK, epoch, visit)]

    def _pick(self, pools: list[NDArray[np.int64]], count: int, *key: int) -> list[list[int]]:
        """The first ``count`` of a permutation of each pool, in turn where there are fewer; numbers are of one pool."""
        numbers = np.concatenate(pools)
        sizes = [len(pool) for pool in pools]
        purpose, *rest = key
        order = np.lexsort((hash64(purpose, self.seed, *rest, numbers), np.repeat(np.arange(len(pools)), sizes)))
        shuffled = np.split(numbers[order], np.cumsum(sizes)[:-1])
        return [np.resize(group, count).tolist() for group in shuffled]


class AugmentedPKSampler(PKSampler):
    """Make batches of ``p`` identities with ``k`` pictures each, of which ``generated`` are to be translated.

    A batch is a list of ``(epoch, number, position, style)``: ``style`` is the camera whose look the picture shall get,
    another than its own, and -1 where it stays as it is. Of an identity real pictures come first. Which are translated,
    and into which camera, is drawn from all pairs of its pictures and the other cameras, whether or not they are among
    the real ones. The rest is as in :class:`PKSampler`.

    Args:
        labels: ``(N,)`` identity of each position of the training set, -1 for none; the same on all ranks.
        camids: ``(N,)`` camera of each position. Styles are the cameras that occur.
        p: identities in a batch of this process.
        k: pictures of an identity in a batch.
        generated: so many of these are to be translated.
        seed: together with the epoch it decides order and choice.
        num_replicas: number of ranks; ``None`` asks ``torch.distributed``.
        rank: this rank; ``None`` asks ``torch.distributed``.

    Raises:
        ValueError: as in :class:`PKSampler`; or ``generated`` leaves no real picture, there is only one camera, or
            ``camids`` and ``labels`` differ in length.

    Source:
        AD-Cluster, arXiv 2004.08787: real and generated pictures 3 to 1 (inferred).

    Example:
        >>> labels, camids = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
        >>> (batch,) = AugmentedPKSampler(labels, camids, p=2, k=3, generated=1, num_replicas=1, rank=0)
        >>> [style >= 0 for _, _, _, style in batch]
        [False, False, True, False, False, True]
        >>> all(style != camids[position] for _, _, position, style in batch)
        True
    """

    def __init__(
        self,
        labels: NDArray[np.int64],
        camids: NDArray[np.int64],
        p: int,
        k: int,
        generated: int = 2,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        super().__init__(labels, p, k, seed, num_replicas, rank)
        if not 0 <= generated < k:
            raise ValueError(f"generated must be 0 to k - 1 = {k - 1}, got {generated}: some pictures must be real")
        if len(camids) != len(labels):
            raise ValueError(f"camids must have one camera per label, got {len(camids)} for {len(labels)}")
        self.camids, self.generated = np.asarray(camids, np.int64), generated
        self._cameras = np.unique(self.camids)
        if generated and len(self._cameras) < 2:
            raise ValueError(f"generated={generated} needs two cameras: there is no other to translate to; set it to 0")

    def _groups(self, members: list[NDArray[np.int64]], epoch: int, visit: int) -> list[list[tuple[int, ...]]]:
        real = self._pick(members, self.k - self.generated, PICK, epoch, visit)
        if not self.generated:
            return [[(position, -1) for position in group] for group in real]
        others = np.arange(len(self._cameras) - 1)
        pairs = [(positions[:, None] * len(others) + others).flatten() for positions in members]
        drawn = self._pick(pairs, self.generated, STYLE, epoch, visit)
        return [
            [
                *((position, -1) for position in group),
                *(self._translation(*divmod(pair, len(others))) for pair in codes),
            ]
            for group, codes in zip(real, drawn, strict=True)
        ]

    def _translation(self, position: int, other: int) -> tuple[int, ...]:
        """A position, and a camera counted without its own."""
        own = int(np.searchsorted(self._cameras, self.camids[position]))
        return position, int(self._cameras[other + (other >= own)])


class IdleSampler(ResumableBatchSampler[Keys]):
    """One empty batch an epoch, where there is nothing to train on.

    Example:
        >>> list(IdleSampler(num_replicas=1, rank=0))
        [[]]
    """

    def __len__(self) -> int:
        return 1

    def batches(self, epoch: int, start: int = 0) -> Iterator[Keys]:
        """The batches of an epoch from number ``start`` on."""
        yield from [[]][start:]


class StepSampler(ResumableSampler[Keys]):
    """Make numbered batches of a stream of permutations of a set; a later sampler can go on anywhere in it.

    A batch is a list of ``(part, number, position)``, ``number`` counting the places of the stream.

    Args:
        size: of the set.
        steps: numbers of the batches.
        batch_size: over all ranks together; of each batch a rank gets every ``num_replicas``-th place.
        part: number of the stream.
        seed: together with the part it decides the stream.
        num_replicas: number of ranks; ``None`` asks ``torch.distributed``.
        rank: this rank; ``None`` asks ``torch.distributed``.

    Raises:
        ValueError: ``rank`` is not below ``num_replicas``, or ``batch_size`` no multiple of it.

    Example:
        >>> batches = list(StepSampler(4, range(2), batch_size=2, num_replicas=1, rank=0))
        >>> sorted(position for batch in batches for _, _, position in batch)
        [0, 1, 2, 3]
    """

    def __init__(
        self,
        size: int,
        steps: range,
        batch_size: int,
        part: int = 0,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        super().__init__(seed, num_replicas, rank)
        if batch_size < 1 or batch_size % self.num_replicas:
            raise ValueError(
                f"batch_size must be a multiple of the {self.num_replicas} process(es), got {batch_size}: each gets an "
                "equal share"
            )
        self.size, self.steps, self.batch_size, self.part = size, steps, batch_size, part

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Keys]:
        cycle, order = -1, np.empty(0, np.int64)
        for step in self.steps:
            keys: Keys = []
            for number in range(step * self.batch_size + self.rank, (step + 1) * self.batch_size, self.num_replicas):
                if number // self.size != cycle:
                    cycle = number // self.size
                    order = permutation(self.size, STEPS, self.seed, self.part, cycle)
                keys.append((self.part, number, int(order[number % self.size])))
            yield keys
