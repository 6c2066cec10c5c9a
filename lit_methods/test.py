"""Evaluate on the test split: ``python -m lit_methods.test [RECIPE] [--config F]... [dotted overrides]``."""

from lit_methods.cli import main

if __name__ == "__main__":
    raise SystemExit(main("test"))
