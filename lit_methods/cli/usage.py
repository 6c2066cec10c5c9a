"""The short help text of the entries; the standard library alone."""

ENTRIES = {  # what follows ``python -m lit_methods.``, and what it does
    "fit": "train a method, then test its best checkpoint",
    "validate": "evaluate on the validation split",
    "test": "evaluate on the test split",
    "predict": "answer for your own pictures, or for the recipe's prediction data",
    "export": "write the network of a checkpoint as ONNX and torch.export, compared with it",
    "doctor": "check the machine and a recipe, with its data and first step, or say what a checkpoint is",
    "dashboard": "save a ready-made W&B workspace of a method",
    "report": "write one HTML page that explains a run, or several side by side",
}

_OPTIONS = """
  --list                    the packaged recipes, one line each (also without any argument)
  --config FILE             your own YAML beside or instead of a recipe; a later one wins
  --run_dir DIR             where the run writes; without it a new directory below runs/ (printed as the last line)
  --ckpt_path FILE|last     a checkpoint; 'last' is the newest one of this recipe, or of --run_dir
  --logger csv|wandb        metrics.csv is always written; wandb adds Weights & Biases, offline where no key is set
  --seed_everything N       0 unless given
  --safe                    for a configuration of unknown origin: only classes of this project, Lightning and torch
  --print_config            the whole configuration as YAML, and stop (=skip_default prints what differs)
  --model.lr 0.1            any argument of the method, likewise --data.*, --trainer.* and --checkpoint.*
  --trainer.callbacks+=X    one more callback; --trainer.callbacks.keep 0.5 then sets an argument of it
  --model.help [CLASS]      the arguments of a class, the recipe's unless named; likewise --data.help
  --trainer.callbacks.help  which callbacks there are; with the name of one, its arguments
  --help_all                every option of the Trainer and the checkpoints"""

_WITHOUT_RECIPE = {  # entries that take other words, and all that there is to say of them
    "dashboard": """
python -m lit_methods.dashboard [METHOD...] --entity E [--project P]: save ready-made W&B workspaces
  METHOD                    folders such as hrank (--list shows them); all ten unless given
  --entity E                your user or team at W&B (WANDB_ENTITY)
  --project P               of the runs: lit-methods unless given (WANDB_PROJECT)
  --dry_run                 print the workspaces as JSON; needs neither key nor network
  Needs pip install 'lit-methods[dashboards]' and a key (wandb login). Prints each address; a call saves new ones.""",
    "report": """
python -m lit_methods.report RUN_DIR [RUN_DIR...] [--output FILE]: write one HTML page that explains runs
  RUN_DIR                   what fit, validate, test or predict printed as its last line; several are shown side by side
  --output FILE             report.html in the first run's directory unless given
  The page needs a browser and no network: what was run, its figures beside the paper's, what differs from the recipe
  and from the paper's settings, curves, pictures, tables, costs, versions.""",
}

_OF_ENTRY = {
    "fit": """
  --ckpt_path of a checkpoint inside --run_dir continues that run in place; elsewhere the directory must be empty.""",
    "doctor": """
  without a recipe          the machine alone: versions, devices, threads, room to write, W&B
  --ckpt_path FILE          without a recipe: method, data, metrics, sizes, versions of a checkpoint, and how to go on
                            (--ckpt_path last --run_dir DIR: the last one of that run)
  --resume                  train the recipe briefly, kill it in the middle of an epoch, resume it, compare the weights
  --steps N                 training batches of that drill, 4 per epoch (12); more reach what happens in later epochs
  One line per check: ok, warning or FAIL. The exit code is 1 where one failed.""",
    "export": """
  --formats onnx torch      one or both; they lie in export/ of the run's directory, and only if they compute the same
  Needs --ckpt_path, no data, no device. Where a file differs from the network none is written: exit code 1.""",
    "predict": """
  --input PATH...           pictures and folders of pictures; writes predictions.csv and pictures/""",
}


def overview() -> str:
    """One line per entry, and how to go on.

    Example:
        >>> print(overview().splitlines()[0])
        python -m lit_methods.fit       train a method, then test its best checkpoint
    """
    width = max(map(len, ENTRIES))
    lines = [f"python -m lit_methods.{name:{width}}  {what}" for name, what in ENTRIES.items()]
    others = " and ".join(_WITHOUT_RECIPE)
    return "\n".join(
        [
            *lines,
            "",
            f"Each but {others} takes a recipe first (python -m lit_methods.fit --list shows them); all have --help.",
        ]
    )


def usage(entry: str) -> str:
    """The text of ``--help``.

    Example:
        >>> print(usage("fit").splitlines()[0])
        python -m lit_methods.fit [RECIPE] [--config FILE]... [options]: train a method, then test its best checkpoint
    """
    if entry in _WITHOUT_RECIPE:
        return _WITHOUT_RECIPE[entry].strip()
    head = f"python -m lit_methods.{entry} [RECIPE] [--config FILE]... [options]: {ENTRIES.get(entry, '')}"
    return head + "\n" + _OPTIONS + _OF_ENTRY.get(entry, "")
