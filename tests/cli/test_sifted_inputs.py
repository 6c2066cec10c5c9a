"""predict of a method that takes something else than pictures: it sifts the user's paths itself."""

from pathlib import Path

import pytest
from toy_method import ToyMethod

from tests.left_behind import read_rows, read_summary


class Counting(ToyMethod):
    """Counts the files of folders."""

    closed = 0

    @classmethod
    def add_cli_arguments(cls, parser, entry: str) -> None:
        if entry == "predict":
            parser.add_argument("--ending", type=str, default="")

    def sift_inputs(self, paths, ending: str):
        if not all(Path(path).exists() for path in paths):
            raise FileNotFoundError(f"input={paths[0]!r} does not exist")
        folders = [Path(path) for path in paths if Path(path).is_dir()]
        others = {Path(path): f"{path!r} is\n no folder" for path in paths if not Path(path).is_dir()}
        return [(folder, ending) for folder in folders], others

    def prepare_inputs(self, paths, ending: str):
        return Folders(self, paths)

    def predict_step(self, batch, batch_idx):
        return [{"file": batch["folder"], "entry": path.name} for path in batch["found"]]


class Folders:
    def __init__(self, module, pairs) -> None:
        self.module, self.pairs = module, pairs

    def __iter__(self):
        for folder, ending in self.pairs:
            if folder.name == "broken":
                raise RuntimeError("a fault of the code")
            yield {"folder": str(folder), "found": sorted(folder.glob(f"*{ending}"))}

    def close(self) -> None:
        type(self.module).closed += 1


COUNTING = ["--model", "test_sifted_inputs.Counting", "--ending", ".txt"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for name in ("a.txt", "b.txt", "c.csv"):
        (tmp_path / "in" / name).touch()
    return tmp_path / "in"


def test_a_method_may_sift_the_paths_itself(command, folder):
    closed = Counting.closed
    answer = command("predict", *COUNTING, "--input", "in", "in/a.txt")
    assert (answer.code, answer.err) == (1, ["error: 'in/a.txt' is no folder"])
    assert read_rows(answer.run_dir / "predictions.csv") == [
        {"file": "in", "entry": "a.txt"}, {"file": "in", "entry": "b.txt"}
    ]  # fmt: skip
    assert read_summary(answer.run_dir)["predict/unreadable"] == 1
    assert Counting.closed == closed + 1


def test_what_it_refuses_ends_the_command(command, folder):
    answer = command("predict", *COUNTING, "--input", "nowhere")
    assert (answer.code, len(answer.err)) == (2, 1)
    assert "input='nowhere'" in answer.err[0]


def test_without_paths_the_data_may_have_nothing_to_predict(command, folder):
    data = ["--data", "TrackingBenchmarkDataModule", "--data.benchmark", "folder", "--data.root", "in"]
    answer = command("predict", *COUNTING, *data)
    assert answer.code == 2
    assert answer.err == [
        "error: input: missing; give --input PATH...: TrackingBenchmarkDataModule has none of its own"
    ]


def test_batches_are_closed_after_a_fault_too(command, folder):
    (folder.parent / "broken").mkdir()
    closed = Counting.closed
    with pytest.raises(RuntimeError, match="a fault of the code"):
        command("predict", *COUNTING, "--input", "in", "broken")
    assert Counting.closed == closed + 1
