"""Write the list of a recipe from the record of its run: ``python -m tests.logged_keys RUN_DIR RECIPE``."""

import sys
from pathlib import Path

from tests.logged_keys import write
from tests.wandb_record import read_record

if __name__ == "__main__":
    write(read_record(Path(sys.argv[1])), sys.argv[2])
