"""The short help text of the entries; the standard library alone."""

ENTRIES = {  # what follows ``python -m lit_methods.``, and what it does
    "fit": "train a method, then test its best checkpoint",
    "validate": "evaluate on the validation split",
    "test": "evaluate on the test split",
    "predict": "answer for your own pictures, or for the recipe's prediction data",
    "export": "write the network of a checkpoint as ONNX and torch.export, compared with it",
    "doctor": "check the machine and, of a recipe, the configuration, the data and the first step",
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

_OF_ENTRY = {
    "fit": """
  --ckpt_path of a checkpoint inside --run_dir continues that run in place; elsewhere the directory must be empty.""",
    "doctor": """
  without a recipe          the machine alone: versions, devices, threads, room to write, W&B
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
    return "\n".join(
        [*lines, "", "Each takes a recipe first (--list shows them: python -m lit_methods.fit --list) and has --help."]
    )


def usage(entry: str) -> str:
    """The text of ``--help``.

    Example:
        >>> print(usage("fit").splitlines()[0])
        python -m lit_methods.fit [RECIPE] [--config FILE]... [options]: train a method, then test its best checkpoint
    """
    head = f"python -m lit_methods.{entry} [RECIPE] [--config FILE]... [options]: {ENTRIES.get(entry, '')}"
    return head + "\n" + _OPTIONS + _OF_ENTRY.get(entry, "")
