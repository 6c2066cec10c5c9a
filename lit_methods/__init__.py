"""Ten published vision methods as PyTorch Lightning modules.

The names below are imported when they are first used, so that ``import lit_methods`` costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lit_methods.classification import ImageClassifier
    from lit_methods.filter_sketch.module import FilterSketch
    from lit_methods.hrank.module import HRank
    from lit_methods.inference import Predictor
    from lit_methods.ppba.module import PPBA

__all__ = ["PPBA", "FilterSketch", "HRank", "ImageClassifier", "Predictor"]
__version__ = "0.1.0"

_HOME = {
    "FilterSketch": "lit_methods.filter_sketch.module",
    "HRank": "lit_methods.hrank.module",
    "ImageClassifier": "lit_methods.classification",
    "PPBA": "lit_methods.ppba.module",
    "Predictor": "lit_methods.inference",
}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
