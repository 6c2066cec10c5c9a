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


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "value",
    [np.float32(2.5), np.bool_(True), np.datetime64("2020-01-01"), np.array(["a", "bc"]), np.array([1, None], object)],
    ids=["float", "bool", "date", "strings", "objects"],
)
def test_scalars_and_arrays_of_other_kinds(protocol, value):
    loaded = load_arrays(pickle.dumps(value, protocol=protocol), "batch")
    assert type(loaded) is type(value)
    assert loaded.dtype == value.dtype
    assert np.array_equal(loaded, value)


def test_strings_of_python_2_may_stay_bytes():
    assert load_arrays(b"\x80\x02U\x02\xe9\xffq\x00.", "batch", encoding="bytes") == b"\xe9\xff"


class Forged:
    """A call and a state of an attacker's choosing."""

    def __init__(self, *parts):
        self.parts = parts

    def __reduce__(self):
        return self.parts


def forged_dtype(code, fields=None, names=None, size=-1, alignment=-1, version=3):
    """A dtype of objects that says of itself, in the last number, that it holds none."""
    return Forged(np.dtype, (code, False, True), (version, "|", None, names, fields, size, alignment, 0))


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize(
    "dtype",
    [
        ("O8",),
        ("V8", {"a": (np.dtype("O"), 0)}, ("a",), 8, 1),
        ("S8", None, None, 80, 1),
        ("S8", None, None, 8, 16),
        ("S8", None, None, 8, 1, 2),
    ],
    ids=["O", "V", "S", "alignment", "version"],
)
def test_bytes_do_not_pass_for_addresses(protocol, dtype):
    from numpy._core.multiarray import _reconstruct, scalar

    array = Forged(_reconstruct, (np.ndarray, (0,), b"b"), (1, (1,), forged_dtype(*dtype), False, b"A" * 8))
    for hostile in (Forged(scalar, (forged_dtype(*dtype), b"A" * 8)), array):
        with pytest.raises(ValueError, match="asks for a dtype that is not a plain"):
            load_arrays(pickle.dumps(hostile, protocol=protocol), "batch")  # the ordinary reader's process dies


def test_functions_are_not_changed():
    from numpy._core.numeric import _frombuffer

    hostile = b"cnumpy._core.numeric\n_frombuffer\n" + pickle.dumps({"owned": 1}, protocol=0)[:-1] + b"b."
    with pytest.raises(ValueError, match="changes a function, but only arrays"):
        load_arrays(hostile, "batch")
    assert not hasattr(_frombuffer, "owned")
    pickle.loads(hostile)
    assert _frombuffer.__dict__.pop("owned") == 1  # the same bytes do it in the ordinary reader
