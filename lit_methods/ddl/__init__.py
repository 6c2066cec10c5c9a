"""DDL: distribution distillation loss for hard faces and other hard samples (arXiv 2002.03662)."""
