"""ASFD: automatic and scalable face detector (arXiv 2003.11228)."""
