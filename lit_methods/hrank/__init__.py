"""HRank: prune the filters whose feature maps have the lowest rank (arXiv 2002.10179)."""
