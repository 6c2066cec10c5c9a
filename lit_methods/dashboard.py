"""Save a ready-made W&B workspace: ``python -m lit_methods.dashboard [METHOD] [--entity E] [--project P]``."""

from lit_methods.cli import main

if __name__ == "__main__":
    raise SystemExit(main("dashboard"))
