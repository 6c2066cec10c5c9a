"""LightningCLI without subcommands: one parser for recipe, data, method and Trainer, and what is built from it.

With subcommands the hyperparameters in a checkpoint silently beat the command line, and four parsers are built.
"""

import sys
import time
import warnings
from typing import Any, Literal, NoReturn

import yaml
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger

from lit_methods.cli import safe as safe_mode
from lit_methods.cli.changes import command_line_changes, config_changes, is_outdated
from lit_methods.cli.checkpoints import RunCheckpoint
from lit_methods.cli.class_help import asked_for, list_classes
from lit_methods.cli.classes import find_class, import_short_names, signature
from lit_methods.cli.given import Given, collect, flatten, last, read_file
from lit_methods.cli.loading import check_resumable, class_in, class_to_load
from lit_methods.cli.loggers import close_loggers, make_loggers
from lit_methods.cli.rejection import explain
from lit_methods.cli.run_directory import place, recipe_name
from lit_methods.cli.start import Start
from lit_methods.cli.trainers import make_trainer

LINKED = ("num_classes", "mean", "std", "class_names", "input_size")  # what the data know and a module may take
_NOT_SAVED = ("config", "run_dir", "ckpt_path", "input")  # config.yaml describes the run, not where it went
_ABOUT = ("description", "paper")  # what a recipe says about itself


class OneLineParser(LightningArgumentParser):
    """A parser whose errors are one line on stderr and exit code 2."""

    given: list[Given] = []  # of the command that is being parsed: jsonargparse builds the parser itself
    command = ""  # its name, for the parsers that jsonargparse builds for --model.help as well

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"prog": self.command, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong and leave."""
        if not self.exit_on_error:  # an inner parser: another member of a Union may still fit
            super().error(message, ex)
        options = [action.dest for action in self._actions if action.dest != "help"]
        for group in ("model", "data"):  # their arguments are no options of the parser: it asks the class
            if cls := find_class(str(last(self.given, group, f"{group}.class_path"))):
                options += [f"{group}.{name}" for name in signature(cls)]
        print(f"error: {explain(message, self.given, options)}", file=sys.stderr)
        raise SystemExit(2)


class RunCLI(LightningCLI):
    """Everything that one command names, parsed on construction and built by :meth:`build`.

    Args:
        entry: ``"fit"``, ``"validate"``, ``"test"``, ``"predict"`` or ``"export"``.
        argv: the words after the command, the recipe's name replaced by ``--config FILE``.
    """

    def __init__(self, entry: str, argv: list[str]) -> None:
        self.begun_at = time.monotonic()
        self.entry = entry
        self.start = Start(self)
        self.built = False
        self.module_class: type | None = None
        self._own: set[str] = set()  # options that the method declares itself
        argv = ["--help" if word == "--help_all" else word for word in argv]
        safe, argv = safe_mode.OPTION in argv, [word for word in argv if word != safe_mode.OPTION]
        self.given = collect(argv)
        self.recipe = recipe_name(self.given, argv)
        self.changes = command_line_changes(argv, self.recipe)
        _check_files(self.given)
        if safe:
            safe_mode.allow_known_packages(self.given)
        self.loads = entry != "fit" and last(self.given, "ckpt_path") is not None  # the checkpoint decides the class
        import_short_names(self.given)
        if path := last(self.given, "model", "model.class_path"):
            self.module_class = find_class(str(path))
        elif self.loads and (named := class_in(last(self.given, "ckpt_path"))):
            self.module_class = named  # no recipe: arguments of --model.* and the method's own need a class to stand in
            argv = ["--model", f"{named.__module__}.{named.__qualname__}", *argv]
        if key := asked_for(self.given):
            if (path := last(self.given, key, f"{key}.class_path")) is None:
                print(list_classes(key))
                raise SystemExit(0)
            argv = [f"--{key}.help", str(path)]
        else:
            argv += [word for name in _ABOUT if is_outdated(self.given, name) for word in (f"--{name}", "null")]
        self.checkpoint: RunCheckpoint | None = None
        self.loggers: list[Logger] = []
        OneLineParser.given, OneLineParser.command = self.given, f"python -m lit_methods.{entry}"
        super().__init__(
            args=argv,
            run=False,
            parser_class=OneLineParser,
            parser_kwargs={"allow_abbrev": False},
            save_config_callback=None,  # Start does it, when the run begins
            auto_configure_optimizers=False,  # else optimiser options would replace configure_optimizers
            seed_everything_default=0,
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Trainer, method and data; the last two may be missing, as in ``predict --input`` with a checkpoint."""
        parser.add_lightning_class_args(Trainer, "trainer")
        parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True, required=not self.loads)
        parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True, required=False)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The entries' own options, the method's own ones, and the links from data to method."""
        parser.add_argument("--run_dir", type=str | None, default=None, help="where the run writes")
        parser.add_argument("--ckpt_path", type=str | None, default=None, help="a checkpoint, or 'last'")
        parser.add_argument("--logger", type=Literal["csv", "wandb"], default="csv", help="what to log to besides CSV")
        parser.add_argument("--recipe", type=str | None, default=None, help="under which name the run is kept")
        parser.add_argument("--description", type=str | None, default=None, help="the recipe's line in --list")
        parser.add_argument("--paper", type=dict[str, Any] | None, default=None, help="published figures, for card.md")
        if self.entry == "predict":
            parser.add_argument("--input", type=str, nargs="+", default=None, help="pictures and folders, or videos")
        if self.entry == "export":
            parser.add_argument("--formats", type=Literal["onnx", "torch"], nargs="+", default=["onnx", "torch"])
        parser.add_class_arguments(RunCheckpoint, "checkpoint")
        if self.module_class is None:
            return
        before = {action.dest for action in parser._actions}
        if hasattr(self.module_class, "add_cli_arguments"):
            self.module_class.add_cli_arguments(parser, self.entry)
        self._own = {action.dest for action in parser._actions} - before
        if not self.loads and last(self.given, "data", "data.class_path"):
            self._link_data_to_method(parser, self.module_class)

    def _link_data_to_method(self, parser: LightningArgumentParser, module_class: type) -> None:
        takes = signature(module_class)
        explicit = {pair.plain_key for pair in self.given}
        for name in LINKED:
            if name in takes and f"model.{name}" not in explicit:
                # applied after the data are built, so a datamodule knows its classes in __init__
                parser.link_arguments(
                    "data", f"model.init_args.{name}", compute_fn=_reader(name, takes[name]), apply_on="instantiate"
                )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, without the parent's warning that ``sys.argv`` is left alone (ddp reads it again)."""
        self.config = parser.parse_args(args)
        self.config["recipe"] = self.recipe

    def instantiate_classes(self) -> None:
        """Only place the run: the building waits for :meth:`build`, when other processes can be told where."""
        self.directory = place(self.entry, self.config.run_dir, self.config.ckpt_path, self.recipe)

    def build(self) -> None:
        """Build data, method and Trainer.

        Raises:
            ValueError: an argument is out of range, or the checkpoint's class is not known or another one.
        """
        if not self.loads and self.directory.ckpt_path and self.module_class:
            check_resumable(self.directory.ckpt_path, self.module_class)
        if self.entry == "export":
            if not self.loads:
                raise ValueError("ckpt_path: missing; give --ckpt_path FILE, or 'last'")
            self.datamodule, self.model = None, self._load_model()
            # the recipe's data may not be here, nor the devices that its Trainer wants
            self.trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
            self.built = True
            return
        config = self.config.clone()
        if self.loads:
            config.pop("model")
        if self.loads and config.get("input"):
            config.pop("data")
        self.config_init = self.parser.instantiate(config)
        self.datamodule = self.config_init.get("data")
        self.model = self._load_model() if self.loads else self.config_init.get("model")
        options = {name: value for name, value in self.module_options().items() if value is not None}
        if options and self.entry in ("fit", "test"):
            self.model.take_options(**options)
        self.trainer = self.instantiate_trainer()
        self.built = True

    def _load_model(self) -> LightningModule:
        """The method as its checkpoint has it; arguments given on the command line win."""
        path = self.directory.ckpt_path
        assert path is not None
        module_class = class_to_load(path, self.module_class)
        takes = signature(module_class)
        said = [pair.plain_key.split(".") for pair in self.given if pair.file is None]
        names = {keys[1] for keys in said if keys[0] == "model" and len(keys) > 1 and keys[1] in takes}
        given = self.config.model.get("init_args", {}) if self.config.get("model") else {}
        explicit = {name: given[name] for name in names if name in given}
        explicit.pop("base_checkpoint", None)  # the checkpoint's own weights follow
        return module_class.load_from_checkpoint(path, map_location="cpu", weights_only=True, **explicit)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The Trainer with what every run has: its directory, its loggers and its callbacks."""
        config = {**self.config_init.trainer, **kwargs, "default_root_dir": str(self.directory.path)}
        if self.entry == "fit" and config.get("enable_checkpointing") is not False:
            self.checkpoint = self.config_init.checkpoint
            self.checkpoint.dirpath = str(self.directory.path / "checkpoints")
        self.loggers = make_loggers(self.config.logger, self.directory, self.plain_config)
        return make_trainer(config, self.entry, self.loggers, self.start, self.checkpoint)

    def module_options(self) -> dict[str, Any]:
        """What the user gave for the options that the method itself declares in ``add_cli_arguments``."""
        return {name: self.config[name] for name in self._own}

    def save_config(self) -> None:
        """Write ``config.yaml``, from which ``fit --config`` runs the same again."""
        path = self.directory.path / "config.yaml"
        if self.directory.in_place and self.entry != "fit" and path.exists():
            return  # an evaluation in the directory of its run
        old = read_file(str(path)) if self.directory.in_place and path.exists() else []
        if old and (changes := config_changes(old, flatten(self.plain_config()))):
            warnings.warn(f"config.yaml changes: {changes}", stacklevel=2)
        config = self._lasting_config()
        path.parent.mkdir(parents=True, exist_ok=True)
        self.parser.save(config, str(path), skip_unset=False, overwrite=True, multifile=False, skip_validation=True)

    def plain_config(self) -> dict[str, Any]:
        """What ``config.yaml`` holds, as plain values."""
        return yaml.safe_load(self.parser.dump(self._lasting_config(), skip_unset=False, skip_validation=True))

    def _lasting_config(self) -> Any:
        config = self.config.clone()
        for name in (*_NOT_SAVED, *self._own, *(name for name in _ABOUT if config.get(name) is None)):
            config.pop(name, None)
        return config

    def close(self) -> None:
        """End what outlives the Trainer: no stage follows."""
        close_loggers(self.loggers)


def _check_files(given: list[Given]) -> None:
    """What jsonargparse answers with an error about Python: files, and groups in them, that are no mappings."""
    for pair in given:
        if pair.key == "config" and pair.file:
            raise ValueError(f"config={pair.value!r}: not a configuration: it holds no keys and values")
        if pair.key in ("trainer", "checkpoint") and pair.file and pair.value is not None:
            raise ValueError(f"{pair.key}={pair.value!r}: give the arguments below it, in {pair.file}")


def _reader(name: str, default: Any) -> Any:
    def read(data: Any) -> Any:
        value = getattr(data, name, default)
        return list(value) if isinstance(value, tuple) else value  # plain types alone load with weights_only

    return read
