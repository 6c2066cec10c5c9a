"""FilterSketch: shrink layers by matrix sketches of their weights (arXiv 2001.08514)."""
