"""Evaluate on the validation split: ``python -m lit_methods.validate [RECIPE] [--config F]... [dotted overrides]``."""

from lit_methods.cli import main

if __name__ == "__main__":
    raise SystemExit(main("validate"))
