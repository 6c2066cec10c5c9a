"""Published vision methods as PyTorch Lightning modules.

The class of a method is found in the ``module.py`` of its folder, and imported when it is first used, so that
``import lit_methods`` costs next to nothing. The lines below are for editors and type checkers.
"""

from typing import TYPE_CHECKING

from lit_methods.functional.lazy import lazy_names

if TYPE_CHECKING:
    from lit_methods.ad_cluster.camera_stargan import CameraStarGAN as CameraStarGAN
    from lit_methods.ad_cluster.module import ADCluster as ADCluster
    from lit_methods.ad_cluster.retrieval import PersonRetrieval as PersonRetrieval
    from lit_methods.ad_cluster.source import SourceReID as SourceReID
    from lit_methods.asfd.architecture_search import ASFDSearch as ASFDSearch
    from lit_methods.asfd.module import ASFD as ASFD
    from lit_methods.bpe_mip.benchmark import BPEBenchmark as BPEBenchmark
    from lit_methods.bpe_mip.darts_search import DARTSSearch as DARTSSearch
    from lit_methods.bpe_mip.module import BPE as BPE
    from lit_methods.classification import ImageClassifier as ImageClassifier
    from lit_methods.ddl.comparison import DDLComparison as DDLComparison
    from lit_methods.ddl.module import DDL as DDL
    from lit_methods.ddl.recognition import FaceRecognition as FaceRecognition
    from lit_methods.filter_sketch.module import FilterSketch as FilterSketch
    from lit_methods.hrank.module import HRank as HRank
    from lit_methods.inference import Predictor as Predictor
    from lit_methods.mcn.module import MCN as MCN
    from lit_methods.ppba.module import PPBA as PPBA
    from lit_methods.siamban.module import SiamBAN as SiamBAN

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_names(__name__, __file__, found="*/module.py")
