"""The tour of the examples: executed cell by cell as a reader would, in a folder of its own."""

import json
import re
import shutil
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
STEPS = ("dense", "hrank", "filter_sketch", "ppba_dense", "ppba_hrank", "ppba_filter_sketch", "nad_dense", "nad_hrank")


@pytest.mark.slow
def test_the_tour_runs_and_arrives(tmp_path):
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    shutil.copy(EXAMPLES / "tour.ipynb", tmp_path)
    notebook = nbformat.read(tmp_path / "tour.ipynb", as_version=4)
    where = {"metadata": {"path": str(tmp_path)}}
    client.NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=where).execute()

    figures = {step: json.loads((tmp_path / "tour" / step / "summary.json").read_text()) for step in STEPS}
    assert figures["dense"]["test/top1"] >= 0.95
    for pruned in ("hrank", "filter_sketch"):
        assert figures[pruned]["prune/macs"] < 0.6 * figures[pruned]["prune/dense_macs"]
        assert figures[pruned]["test/top1"] >= 0.9
        attacked = figures[f"ppba_{pruned}"]  # of 100 images
        assert attacked["test/top1"] == pytest.approx(figures[pruned]["test/top1"], abs=0.05)
        assert attacked["test/success_rate"] >= 0.9
    for name in ("dense", "hrank"):
        assert figures[f"nad_{name}"]["test/top1"] == figures[name]["test/top1"]  # the very network, taken apart
        assert figures[f"nad_{name}"]["test/own_top1"] > figures[f"nad_{name}"]["test/other_top1"] + 0.5
    assert {path.suffix for path in (tmp_path / "tour" / "hrank" / "export").iterdir()} >= {".onnx", ".pt2"}
    assert (tmp_path / "tour" / "report.html").stat().st_size > 10_000


def test_the_tour_was_executed_as_it_stands():
    """What a reader sees on a web page are the outputs of these very cells."""
    notebook = json.loads((EXAMPLES / "tour.ipynb").read_text("utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"stream", "execute_result"}  # no error
    assert any("image/png" in output.get("data", {}) for output in outputs)
    printed = "".join(line for output in outputs for line in output.get("text", []))
    assert len(printed) > 1000
    assert not re.findall(r"(?<![\w.:])/\w+/", printed)  # no path of the machine that ran it
