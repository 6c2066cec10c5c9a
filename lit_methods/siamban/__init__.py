"""SiamBAN: Siamese box adaptive network for visual tracking (arXiv 2003.06761)."""
