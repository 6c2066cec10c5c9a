"""Explain runs in one HTML page: ``python -m lit_methods.report RUN_DIR [RUN_DIR...] [--output FILE]``."""

from lit_methods.cli import main

if __name__ == "__main__":
    raise SystemExit(main("report"))
