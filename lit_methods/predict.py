"""Answer for pictures: ``python -m lit_methods.predict [RECIPE] [--config F]... [dotted overrides]``."""

from lit_methods.cli import main

if __name__ == "__main__":
    raise SystemExit(main("predict"))
