"""FilterSketch: shrink layers by matrix sketches of their weights (arXiv 2001.08514)."""

from lit_methods.filter_sketch.model import sketch_model

__all__ = ["sketch_model"]
