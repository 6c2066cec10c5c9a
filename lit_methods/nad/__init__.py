"""NAD: the sub-architecture that a network uses for each class (arXiv 2003.13268)."""
