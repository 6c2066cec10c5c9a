import pickle

import numpy as np
import pytest

from datamodules.pickles import load_arrays


class Touch:
    """What an attacker would send: unpickling it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("protocol", range(6))
def test_data_of_every_protocol(protocol):
    content = {"data": np.arange(6, dtype=np.uint8).reshape(2, 3), "labels": [1, 2], "name": "é", "raw": b"\x00\xff"}
    loaded = load_arrays(pickle.dumps(content, protocol=protocol), "batch")
    assert np.array_equal(loaded.pop("data"), content.pop("data"))
    assert loaded == content


def test_pickles_of_python_2_and_older_numpy():
    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x00"
    new = pickle.dumps(np.arange(3, dtype=np.uint8), protocol=2)
    old = new.replace(b"cnumpy._core.multiarray\n_reconstruct\nq\x00", array)
    assert old != new
    assert load_arrays(old, "batch").tolist() == [0, 1, 2]
    assert load_arrays(b"\x80\x02U\x01\xe9q\x00.", "batch") == "é"  # a byte string of Python 2


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_is_executed(tmp_path, protocol):
    hostile = pickle.dumps({"data": Touch(tmp_path / "touched")}, protocol=protocol)
    with pytest.raises(ValueError, match=r"pickle 'data_batch_1': it asks for \S+open, but only arrays"):
        load_arrays(hostile, "data_batch_1")
    assert not (tmp_path / "touched").exists()
    pickle.loads(hostile)["data"].close()
    assert (tmp_path / "touched").exists()  # the same bytes do it in the ordinary reader


@pytest.mark.parametrize("module", ["os", "posix", "builtins", "numpy", "numpy.core.multiarray", "codecs"])
def test_other_names_are_refused(module):
    with pytest.raises(ValueError, match="only arrays and plain values"):
        load_arrays(f"c{module}\nsystem\n(S'true'\ntR.".encode(), "batch")


def test_damaged_files_are_named():
    whole = pickle.dumps({"data": np.zeros(100, np.uint8)}, protocol=2)
    for damaged in (b"", whole[:20], whole[:-1], b"garbage", b"\x80\x02(."):
        with pytest.raises(ValueError, match="cannot read the pickle 'some/file'"):
            load_arrays(damaged, "some/file")
