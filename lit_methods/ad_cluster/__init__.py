"""AD-Cluster: person re-ID adapted to unlabelled cameras by clustering and generated images (arXiv 2004.08787)."""
