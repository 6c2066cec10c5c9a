"""MCN: multi-task collaborative network for the box and the mask of what a sentence means (arXiv 2003.08813)."""
