"""Callbacks of the collection: pruning, reports, loggers, and what keeps a run safe.

A callback is found in the file that bears its name, ``NaNGuard`` in ``nan_guard.py``, and imported when it is first
used. The lines below are for editors and type checkers; three have another name than their file.
"""

from typing import TYPE_CHECKING

from lit_methods.functional.lazy import lazy_names

if TYPE_CHECKING:
    from callbacks.attack_logger import AttackLogger as AttackLogger
    from callbacks.auto_fem_search import AutoFEMSearch as AutoFEMSearch
    from callbacks.backbone_unfreeze import BackboneUnfreeze as BackboneUnfreeze
    from callbacks.camera_augmentation import CameraStyleAugmentation as CameraStyleAugmentation
    from callbacks.cluster_report import ClusterReport as ClusterReport
    from callbacks.complexity_logger import ComplexityLogger as ComplexityLogger
    from callbacks.ddl_warmup import DDLWarmup as DDLWarmup
    from callbacks.detection_results import DetectionResults as DetectionResults
    from callbacks.direct_transfer import DirectTransfer as DirectTransfer
    from callbacks.filter_sketch_pruning import FilterSketchPruning as FilterSketchPruning
    from callbacks.grounding_results import GroundingResults as GroundingResults
    from callbacks.grounding_visualizer import GroundingVisualizer as GroundingVisualizer
    from callbacks.hrank_pruning import HRankPruning as HRankPruning
    from callbacks.interruption import Interruption as Interruption
    from callbacks.learning_rate import LearningRateOnResume as LearningRateOnResume
    from callbacks.mosaic_hit_rate import MosaicHitRate as MosaicHitRate
    from callbacks.nan_guard import NaNGuard as NaNGuard
    from callbacks.prediction_logger import PredictionLogger as PredictionLogger
    from callbacks.probe_sheet import ProbeSheet as ProbeSheet
    from callbacks.pseudo_label_clustering import PseudoLabelClustering as PseudoLabelClustering
    from callbacks.random_state import RandomState as RandomState
    from callbacks.ranked_lists import RankedLists as RankedLists
    from callbacks.report import RunReport as RunReport
    from callbacks.similarity_histogram_logger import SimilarityHistogramLogger as SimilarityHistogramLogger
    from callbacks.sub_architecture_analysis import SubArchitectureAnalysis as SubArchitectureAnalysis
    from callbacks.tracking_logger import TrackingLogger as TrackingLogger
    from callbacks.tracking_results import TrackingResults as TrackingResults

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__, found="*.py")
