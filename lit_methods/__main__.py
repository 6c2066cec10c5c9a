"""``python -m lit_methods``: which commands there are; see :mod:`lit_methods.cli.__main__`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("lit_methods.cli", run_name="__main__", alter_sys=True)
