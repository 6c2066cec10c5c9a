"""Check machine and recipe before a long run: ``python -m lit_methods.doctor [RECIPE] [overrides] [--resume]``."""

from lit_methods.cli import main

if __name__ == "__main__":
    raise SystemExit(main("doctor"))
