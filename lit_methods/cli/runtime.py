"""One run: parse, build, hand over to the Trainer, leave the results behind."""

import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

from lightning.pytorch import Trainer

from callbacks.interruption import interrupted_by, listening
from callbacks.surgery import end_averaging
from lit_methods import slurm
from lit_methods.cli import card
from lit_methods.cli.children import end_children
from lit_methods.cli.endings import answer
from lit_methods.cli.parsing import RunCLI
from lit_methods.cli.preview import preview
from lit_methods.cli.quiet import quiet
from lit_methods.cli.run_directory import announced
from lit_methods.cli.start import a_test_follows


def run(entry: str, argv: list[str]) -> int:
    """Run one entry; see :func:`lit_methods.cli.main`, which expands the recipe's name first.

    ``LIT_METHODS_DEBUG=1`` in the environment shows the traceback of a mistake, too.
    """
    warning = [slurm.WARNING] if entry == "fit" and slurm.current_job() and slurm.WARNING else []
    cli: RunCLI | None = None
    failed = False
    with listening(*warning):
        try:
            with quiet():
                cli = RunCLI(entry, argv)
                with announced(cli.directory), closing(cli):
                    cli.build()
                    return _ENTRIES[entry](cli)
        except BaseException as ex:
            failed = not interrupted_by()
            if (code := answer(ex, cli, argv)) is None:
                raise
            return code
        finally:
            if cli is not None:
                if cli.built:
                    end_children(cli.trainer, patience=5 if failed else 30)
                cli.directory.abandon()  # removes it if it is empty


def _fit(cli: RunCLI) -> int:
    trainer = cli.trainer
    trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=cli.directory.ckpt_path, weights_only=True)
    metrics = card.numbers(trainer.callback_metrics)  # Lightning clears them before the test
    end_averaging(trainer)  # else the averages of the last step are tested in the place of the checkpoint's
    tested = a_test_follows(cli, trainer)
    if tested:
        best = cli.checkpoint.best_path() if cli.checkpoint else None
        best = trainer.strategy.broadcast(best)
        trainer.test(cli.model, datamodule=cli.datamodule, ckpt_path=best, verbose=False, weights_only=True)
        metrics |= card.numbers(trainer.callback_metrics)
    _leave(cli, metrics, "test" if tested else "val")
    return 0


def _evaluate(function: Callable[..., Any], stage: str) -> Callable[[RunCLI], int]:
    def run_stage(cli: RunCLI) -> int:
        if cli.datamodule is None:
            raise ValueError("data: missing; name a recipe that has data, or give --data")
        function(cli.trainer, cli.model, datamodule=cli.datamodule, verbose=False)
        _leave(cli, card.numbers(cli.trainer.callback_metrics), stage)
        return 0

    return run_stage


def _predict(cli: RunCLI) -> int:
    from lit_methods.cli.prediction import predict  # brings Pillow and torchvision

    outcome = predict(
        cli.trainer, cli.model, cli.datamodule, cli.config.get("input"), cli.module_options(), cli.directory.path
    )
    print("".join(f"{line}\n" for line in preview(outcome.rows)), end="")
    _leave(cli, {"predict/samples": outcome.samples, "predict/unreadable": len(outcome.unreadable)}, "predict")
    return 1 if outcome.unreadable else 0


def _export(cli: RunCLI) -> int:
    from lit_methods.cli.export import export

    assert cli.directory.ckpt_path is not None  # RunCLI.build wants it
    place = cli.directory.ckpt_path, cli.directory.path
    return export(cli.model, cli.config.formats, cli.recipe, *place, cli.module_options())


_ENTRIES: dict[str, Callable[[RunCLI], int]] = {
    "fit": _fit,
    "validate": _evaluate(Trainer.validate, "val"),
    "test": _evaluate(Trainer.test, "test"),
    "predict": _predict,
    "export": _export,
}


def _leave(cli: RunCLI, metrics: dict[str, float], stage: str) -> None:
    """Summary, card, closing table and, as the last line, the run's directory."""
    if not cli.trainer.is_global_zero:
        return
    parts = [cli.model, cli.datamodule, *cli.trainer.callbacks]  # type: ignore[attr-defined]
    summary = card.gather(metrics, parts)
    summary |= {
        "seed": card.plain(cli.config.seed_everything),
        "duration_s": round(time.monotonic() - cli.begun_at, 2),  # arguments and building included
        "versions": card.versions(),
    }
    path = cli.directory.path
    card.write_summary(path, summary, keep=cli.directory.in_place and cli.entry != "fit")
    facts = {
        "description": cli.config.get("description"),
        "recipe": cli.recipe,
        "changed": cli.changes,
        "command": cli.entry,
        "method": _path_of(cli.model),
        "data": _path_of(cli.datamodule),
        "checkpoint": cli.directory.ckpt_path,
    }
    if cli.entry == "fit" or not cli.directory.in_place:  # an evaluation leaves the card of its run alone
        card.write_card(path, cli.recipe, facts, cli.config.get("paper") or {}, summary)
    card.print_table(f"{cli.recipe}, {stage}", summary, stage)
    print(path, flush=True)


def _path_of(part: Any) -> str:
    return "" if part is None else f"{type(part).__module__}.{type(part).__qualname__}"
