"""Pickles of lists, dicts and plain values, and nothing else; their conversion to JSON."""

import builtins
import collections
import copyreg
import json
import os
import pickle
import subprocess
import sys

import pytest

from datamodules import pickles
from datamodules.pickles import load_plain, read_plain
from datamodules.refcoco_json import convert_refs, main

REF = {
    "ref_id": 7, "ann_id": 8, "image_id": 9, "category_id": 18, "file_name": "COCO_train2014_000000000009_7.jpg",
    "split": "testA", "sent_ids": [1], "sentences": [{"sent_id": 1, "sent": "left cat", "raw": "Left cat.",
    "tokens": ["left", "cat"]}],
}  # fmt: skip
PLAIN = {"refs": [REF, REF], "none": None, "flags": [True, False], "numbers": [0, -1, 70000, -(2**62), 0.5], 3: "é€"}


class Call:
    """Unpickling it calls something."""

    def __init__(self, *parts):
        self.parts = parts

    def __reduce__(self):
        return self.parts


@pytest.fixture
def touch(tmp_path):
    """A command that would create a file; there must be none in the end."""
    marker = tmp_path / "touched"
    yield f"touch '{marker}'"
    assert not marker.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_of_every_protocol(protocol):
    assert load_plain(pickle.dumps(PLAIN, protocol=protocol), "refs") == PLAIN
    assert load_plain(pickle._dumps(PLAIN, protocol=protocol), "refs") == PLAIN


def test_strings_of_python_2_and_bytes_become_strings():
    assert load_plain(b"\x80\x02]q\x00(U\x01\xe9q\x01X\x02\x00\x00\x00\xc3\xa9q\x02h\x01L5L\ne.", "refs") == [
        "é", "é", "é", 5,
    ]  # fmt: skip
    assert load_plain(b"(lp0\nS'caf\\xe9'\np1\naV\\u20ac\np2\naI01\na.", "refs") == ["café", "€", True]
    for protocol in (3, 4, 5):
        assert load_plain(pickle.dumps({b"sent": b"caf\xe9"}, protocol=protocol), "refs") == {"sent": "café"}


@pytest.mark.parametrize("protocol", range(6))
def test_an_ordered_dict_becomes_a_dict(protocol):
    loaded = load_plain(pickle.dumps([collections.OrderedDict(b=1, a=[2])], protocol=protocol), "refs")
    assert loaded == [{"b": 1, "a": [2]}]
    assert type(loaded[0]) is dict
    assert load_plain(b"ccollections\nOrderedDict\n((l(lS'a'\naI1\naatR.", "refs") == {"a": 1}  # as Python 2 writes it


@pytest.mark.parametrize("protocol", range(6))
def test_commands_are_not_run(protocol, touch):
    for call in (Call(os.system, (touch,)), Call(builtins.eval, (f'__import__("os").system("{touch}")',))):
        hostile = pickle.dumps([{"ref_id": 1, "sentences": call}], protocol=protocol)
        with pytest.raises(ValueError, match=r"pickle 'refs': it asks for \S+\.(system|eval), but only lists, dicts"):
            load_plain(hostile, "refs")


def test_the_command_would_have_run(tmp_path):
    pickle.loads(pickle.dumps(Call(os.system, (f"touch '{tmp_path / 'touched'}'",))))
    assert (tmp_path / "touched").exists()


class Anything:
    pass


@pytest.mark.parametrize(
    "value",
    [
        copyreg._reconstructor, Anything, Anything(), collections.deque([1]), collections.Counter(a=1), print, 1j,
        Call(getattr, ([], "append")), Call(dict, ()), Call(copyreg.add_extension, ("os", "system", 1)),
    ],
    ids=[
        "copyreg", "class", "object", "deque", "counter", "print", "complex", "attribute", "dict", "extension",
    ],
)  # fmt: skip
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_other_classes_and_functions_are_refused(protocol, value):
    with pytest.raises(ValueError, match="but only lists, dicts and plain values are allowed"):
        load_plain(pickle.dumps(value, protocol=protocol), "refs")


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", r"asks for os\.system"),
        (b"(S'true'\nios\nsystem\n.", r"asks for os\.system"),
        (b"(cos\nsystem\nS'true'\no.", r"asks for os\.system"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93(S'true'\ntR.", r"asks for os\.system"),
        (b"c__builtin__\neval\n(S'1'\ntR.", r"asks for \S+\.eval"),
        (b"ccollections\nOrderedDict.fromkeys\n(]tR.", r"asks for collections\.OrderedDict\.fromkeys"),
        (b"ccollections\nOrderedDict\n)R}S'items'\nI1\nsb.", "uses BUILD, which"),
        (b"ccollections\nOrderedDict\n}S'keys'\nI1\nsb.", "uses BUILD, which"),
        (b"]}S'a'\nI1\nsb.", "uses BUILD, which"),
        (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "uses NEWOBJ, which"),
        (b"(ccollections\nOrderedDict\no.", "uses OBJ, which"),
        (b"\x80\x02\x82\x01.", "uses EXT1, which"),
        (b"P0\n.", "uses PERSID, which"),
        (b"]Q.", "uses BINPERSID, which"),
        (b"\x80\x05\x97.", "uses NEXT_BUFFER, which"),
        (b"](I1\ntR.", "calls a list"),
        (b"S'os.system'\n(I1\ntR.", "calls a str"),
        (b"ccollections\nOrderedDict\n.", "holds a type"),
        (b"(I1\nI2\nt.", "holds a tuple"),
        (pickle.dumps({"a": {1, 2}}, protocol=4), "uses EMPTY_SET, which"),
        (pickle.dumps({(1, 2): 3}), "holds a dict whose keys are neither strings nor numbers"),
        (pickle.dumps([2**64]), "a whole number of more than 64 bits"),
        (b"I" + b"9" * 5000 + b"\n.", "cannot read the pickle"),
    ],
)
def test_forged_pickles_are_refused(code, fault):
    with pytest.raises(ValueError, match=fault):
        load_plain(code, "refs")


def test_depth_is_limited():
    nested = []
    for _ in range(31):
        nested = [nested]
    assert load_plain(pickle.dumps(nested), "refs") == nested
    for hostile in (
        pickle.dumps([nested]),
        b"]" * 20_000 + b"a" * 19_999 + b".",
        b"]q\x00h\x00a.",
        b"}q\x00I1\nh\x00s.",
    ):
        with pytest.raises(ValueError, match="nests deeper than 32 levels"):
            load_plain(hostile, "refs")


def test_what_was_seen_before_counts_at_its_new_depth():
    deep = []
    for _ in range(20):
        deep = [deep]
    deeper = deep
    for _ in range(20):
        deeper = [deeper]
    with pytest.raises(ValueError, match="nests deeper than 32 levels"):
        load_plain(pickle.dumps([deep, deeper]), "refs")


def test_bombs_are_refused():
    doubled = ["lol" * 100]
    for _ in range(28):
        doubled = [doubled, doubled]
    for hostile in (
        pickle.dumps(doubled),
        pickle.dumps(["x" * 2**20, "y"]).replace(b"\x8c\x01y\x94", b"h\x01" * 2100),
    ):
        assert len(hostile) < 2**21
        with pytest.raises(ValueError, match="unfolds to more than 2 billion characters"):
            load_plain(hostile, "refs")


def test_places_far_off_in_the_memo_cost_no_memory():
    assert load_plain(b"]r\xff\xff\xff\xff0j\xff\xff\xff\xff.", "refs") == []  # the unpickler in C reserves 64 GB
    for claim in (b"\x80\x04\x8d" + b"\xff" * 7 + b"\x00abc.", b"X\xff\xff\xff\x7fabc.", b"\x8b\xff\xff\xff\x7fabc."):
        with pytest.raises(ValueError, match="cannot read the pickle 'refs'"):
            load_plain(claim, "refs")


def test_large_files_are_refused_unread(tmp_path):
    with open(tmp_path / "refs(unc).p", "wb") as file:
        file.truncate(500 * 2**20 + 1)  # takes no room
    with pytest.raises(ValueError, match=r"refs\(unc\)\.p': it has 524288001 bytes, more than 524288000"):
        read_plain(tmp_path / "refs(unc).p")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*refs\(google\)\.p"):
        read_plain(tmp_path / "refs(google).p")


@pytest.mark.parametrize("damage", [lambda whole: b"", lambda whole: whole[:30], lambda whole: whole[:-1]])
def test_damaged_pickles_are_named(damage):
    with pytest.raises(ValueError, match="cannot read the pickle 'some/refs'"):
        load_plain(damage(pickle.dumps([REF], protocol=2)), "some/refs")


def test_the_reader_of_arrays_is_as_it_was():
    assert pickles._ArraysOnly.dispatch[pickle.NEWOBJ[0]] is pickle._Unpickler.dispatch[pickle.NEWOBJ[0]]
    assert pickle._Unpickler.dispatch[pickle.BUILD[0]] is pickle._Unpickler.load_build


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_json_holds_the_same_list(tmp_path, capsys, protocol):
    path = tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps([REF], protocol=protocol))
    assert main([str(path)]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'refs(unc).json'}\n"
    assert json.loads((tmp_path / "refs(unc).json").read_text("utf-8")) == [REF]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["refs(unc).json", "refs(unc).p"]
    assert convert_refs(path, tmp_path / "other.json").read_bytes() == (tmp_path / "refs(unc).json").read_bytes()


def test_a_file_that_is_there_is_not_replaced(tmp_path, capsys):
    path, target = tmp_path / "refs(unc).p", tmp_path / "refs(unc).json"
    path.write_bytes(pickle.dumps([REF]))
    target.write_text("mine")
    with pytest.raises(FileExistsError, match=r"refs\(unc\)\.json' is there already; remove it"):
        convert_refs(path)
    assert main([str(path)]) == 2
    assert capsys.readouterr().err.startswith("error: target=")
    assert target.read_text() == "mine"


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ([{"ref_id": 7}], "ref_id 7: the field 'ann_id' is missing"),
        ({"refs": []}, "must hold a list of refs, got dict"),
        ([REF | {3: "x"}], "has keys that are no strings"),
        ([REF | {"x": float("nan")}], "cannot be written as JSON"),
        ([REF | {"x": {1}}], "uses EMPTY_SET"),
    ],
)
def test_what_is_no_list_of_refs_is_not_converted(tmp_path, capsys, content, fault):
    path = tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps(content, protocol=4))
    assert main([str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert fault in line
    assert [file.name for file in tmp_path.iterdir()] == ["refs(unc).p"]


def test_mistakes_on_the_command_line_are_one_line(tmp_path, capsys):
    assert main([str(tmp_path / "refs(unc).p")]) == 2
    assert "there is no file" in capsys.readouterr().err
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps([REF]))
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        convert_refs(tmp_path / "refs(unc).p", tmp_path / "none" / "refs.json")
    assert main([]) == 2
    assert main(["--help"]) == 0


@pytest.mark.slow
def test_the_converter_runs_as_a_command(tmp_path):
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps([REF]))
    words = [sys.executable, "-m", "datamodules.refcoco_json", str(tmp_path / "refs(unc).p")]
    codes = [subprocess.run(words, capture_output=True, check=False).returncode for _ in range(2)]
    assert codes == [0, 2]
    assert (tmp_path / "refs(unc).json").is_file()
