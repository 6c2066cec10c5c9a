"""Train a method: ``python -m lit_methods.fit [RECIPE] [--config F]... [dotted overrides]``."""

from lit_methods.cli import main

if __name__ == "__main__":
    raise SystemExit(main("fit"))
