"""LightningDataModules, one per data set.

A batch is a dict, and the key fixes shape and type for every method that reads it:

=====================  =================================================================================
key                    value
=====================  =================================================================================
``image``              (B, 3, H, W) float32, RGB in [0, 1] (uint8 until ``on_after_batch_transfer``)
``label``              (B,) int64, class number
``index``              (B,) int64, position in the training set or in the test set
``pid``, ``camid``     (B,) int64, person and camera, the latter from 0: Market-1501, DukeMTMC-reID; in validation and
                       test with ``is_query`` (B,) bool, and ``index`` counts queries and gallery apart; in training
                       with ``style`` (B,) int64, the camera to translate to or -1, and ``erased`` (B, 4) int64, y0,
                       x0, y1, x1 in pixels, all 0 for none, but without ``pid`` on clusters, where ``label`` is the
                       cluster, and with ``camid`` alone on cameras; with ``lr_query``, in evaluations, ``low`` (B,)
                       bool, a query that was down-sampled
``boxes``              list of (n_i, 4) float32, xyxy in pixels: WIDER FACE; in its evaluations ``image`` is a list of
                       (3, H, W), beside ``attributes``, list of (n_i, 6) int64, ``name``, list of str, ``index``, and
                       where levels are known ``keep_easy``, ``keep_medium``, ``keep_hard``, lists of (n_i,) bool
``ellipses``           list of (n_i, 5) float64, major radius, minor radius, angle in radians, x and y of the centre:
                       FDDB, with ``image``, list of (3, H, W), ``name``, list of str, and ``index``
``tokens``             (B, L) int64, ids of words, 0 for none and 1 for unknown ones: RefCOCO, with ``box`` (B, 4)
                       float32, xyxy in pixels of ``image``, and ``mask`` (B, 1, H, W) uint8 of 0 and 1; in its
                       evaluations ``mask`` is a list of (h, w) of the picture's own size, beside ``size`` (B, 2) int64,
                       h and w, ``image_id`` and ``ref_id`` (B,) int64, ``sentence`` and ``file``, lists of str, and
                       ``index``, the number of the sentence
``template``           (B, 3, s, s), with ``search`` (B, 3, s, s), both float32 BGR, 0 to 255, ``box`` (B, 4) in search
                       pixels, ``negative`` (B,) bool, two different objects, and ``keys`` (B, n, n) float32, random
                       numbers by which the points of the answer that count are chosen: LaSOT training
``frames``             list of the paths of S videos that are tracked at a time, with ``name``, ``boxes`` list of (n, 4)
                       float64 x, y, w, h, ``present`` and ``polygons``, lists of (n,) bool and (n, 8) or ``None``, and
                       ``index`` (S,): evaluation of trackers
``pair``               two of (B, 3, H, W), like ``image``: faces of the same person in equal rows, or, in an
                       evaluation set of pairs, with ``same`` (B,) bool those to be verified
``group``              (B,) int64, in an evaluation set of probes: -1 for the gallery, else the group of a probe
=====================  =================================================================================

Normalising with ``mean`` and ``std`` is the module's business, not the data's. Every datamodule has its own samplers,
which know their rank: several processes need ``Trainer(use_distributed_sampler=False)``. A process for which no sample
is left to validate or test on gets one batch of length 0, so that it takes part in what the others do together; so
does one that has finished the classes that ``per_class_batch`` gave it to train on.

``CIFARDataModule``, ``ImageNetDataModule`` and ``Places365DataModule`` give ``image``, ``label`` and ``index``. With
``split_halves`` a training batch of ``CIFARDataModule`` or ``WIDERFaceDataModule`` is two such batches,
``{"weights": batch, "alphas": batch}``; one of ``TrialDataModule`` is a job, ``{"jobs": [job]}``; one of
``FaceFolderDataModule``, or of ``Market1501DataModule`` with ``train_on="branches"``, is a batch for each branch of its
training set, ``{"easy": batch, "hard": batch}``, with ``image``, ``label`` and ``pair``. ``FaceFolderDataModule`` has a
loader for each evaluation set, where ``index`` is the position in the file of the set. ``RefCOCODataModule`` goes
through pictures in evaluations: a batch has a row for every sentence about them.

The names below are imported when they are first used.
"""

from typing import TYPE_CHECKING

from lit_methods.functional.lazy import lazy_names

if TYPE_CHECKING:
    from datamodules.cifar import CIFARDataModule as CIFARDataModule
    from datamodules.face_folder import FaceFolderDataModule as FaceFolderDataModule
    from datamodules.fddb import FDDBDataModule as FDDBDataModule
    from datamodules.imagenet import ImageNetDataModule as ImageNetDataModule
    from datamodules.lasot import LaSOTDataModule as LaSOTDataModule
    from datamodules.market1501 import (
        DukeMTMCDataModule as DukeMTMCDataModule,
        Market1501DataModule as Market1501DataModule,
    )
    from datamodules.places365 import Places365DataModule as Places365DataModule
    from datamodules.refcoco import RefCOCODataModule as RefCOCODataModule
    from datamodules.tracking_benchmark import TrackingBenchmarkDataModule as TrackingBenchmarkDataModule
    from datamodules.trials import TrialDataModule as TrialDataModule
    from datamodules.wider_face import WIDERFaceDataModule as WIDERFaceDataModule

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
