"""Genotypes: the form that is stored, what is refused, the random ones."""

import copy
import json

import numpy as np
import pytest
import torch

from lit_methods.asfd.genotype import (
    CPM_EDGES,
    KNOWN,
    LEVELS,
    OPERATIONS,
    Genotype,
    default_genotype,
    fpn_edges,
    random_genotype,
    read_genotype,
)


def drawn(seed=0, **options):
    return random_genotype(torch.Generator().manual_seed(seed), **options)


GENOTYPES = {
    "separable": default_genotype("d1"),
    "full": default_genotype("d6"),
    "random": drawn(),
    "per level": drawn(1, shared_cpm=False),
    "two levels": default_genotype(levels=2),
}


@pytest.mark.parametrize("genotype", GENOTYPES.values(), ids=GENOTYPES)
def test_json_gives_the_same_genotype(genotype, tmp_path):
    text = json.dumps(genotype.to_dict())
    assert Genotype.from_dict(json.loads(text)) == genotype
    assert len(text) < 2500
    path = tmp_path / "genotype.json"
    path.write_text(json.dumps({"epoch": 7, "genotype": genotype.to_dict()}), "utf-8")
    for source in (genotype, genotype.to_dict(), text, path, str(path)):
        assert read_genotype(source) == genotype
    assert read_genotype(None) is None


def test_the_default_sums_first_and_convolves_once():
    form = default_genotype("d4").to_dict()
    assert form["fpn"]["4"] == [["conv_3x3", 4, 5]]
    assert form["fpn"]["7"] == [["conv_3x3", 7]]
    assert form["cpm"] == [[["conv_3x3", 0]], [["conv_3x3_d2", 1]], [["conv_3x3", 2]]]
    assert default_genotype("d0").to_dict()["cpm"][1] == [["sep_conv_3x3_d2", 1]]


def test_the_edges_are_those_of_the_specification(vectors):
    assert len(fpn_edges()) == 16
    assert {abs(source - node) for source, node in fpn_edges()} == {0, 1}
    with np.load(vectors / "asfd" / "search.npz") as reference:
        assert reference["edge_src_dst"].tolist() == [list(edge) for edge in CPM_EDGES]
        assert reference["alpha"].shape[1] == len(OPERATIONS)


def test_random_genotypes_use_all_edges_and_operations():
    fpn, cpm = set(), set()
    for seed in range(60):
        genotype = drawn(seed)
        for level, node in zip(genotype.levels, genotype.fpn, strict=True):
            sources = [source for _, (source,) in node]
            assert sources == sorted({*sources})
            assert len(sources) == 2
            fpn |= {(source, level, op) for op, (source,) in node}
        assert [len(node) for node in genotype.cpm[0]] == [1, 2, 2]
        cpm |= {(source, number, op) for number, node in enumerate(genotype.cpm[0], 1) for op, (source,) in node}
    assert {edge[:2] for edge in fpn} == {*fpn_edges()}
    assert {edge[:2] for edge in cpm} == {*CPM_EDGES}
    assert {edge[2] for edge in fpn} == {edge[2] for edge in cpm} == {*OPERATIONS}


def test_a_random_genotype_keeps_to_its_generator_and_its_candidates():
    assert drawn(3) == drawn(3) != drawn(4)
    few = drawn(fpn_ops=["conv_1x1"], cpm_ops=["identity"], shared_cpm=False, keep=1)
    assert {op for node in few.fpn for op, _ in node} == {"conv_1x1"}
    assert [len(graph) for graph in few.cpm] == [3] * 6
    assert {branch for graph in few.cpm for node in graph for branch in node} <= {("identity", (i,)) for i in range(3)}


def test_the_key_does_not_depend_on_the_order_and_on_nothing_else():
    form = drawn(5).to_dict()
    turned = copy.deepcopy(form)
    for node in turned["fpn"].values():
        node.reverse()
    assert Genotype.from_dict(form).key() == Genotype.from_dict(turned).key()
    assert len({drawn(seed).key() for seed in range(50)}) == 50
    assert len({default_genotype("d0").key(), default_genotype("d2").key()}) == 2
    assert len(KNOWN) <= 10  # a digit names each


def changed(path, value):
    form = default_genotype("d2").to_dict()
    *way, last = path
    place = form
    for key in way:
        place = place[key]
    place[last] = value
    return form


BROKEN = {
    "no cpm": ({"fpn": {}}, "this is no genotype: .*; a genotype is"),
    "no dict": ([1, 2], "genotype=.* is neither a genotype, nor a dict, nor a path"),
    "unknown operation": (
        changed(["fpn", "2", 0], ["conv3x3", 2]),
        "level 2 of 'fpn' has an operation 'conv3x3'; did you mean 'conv_3x3'",
    ),
    "operation is a number": (changed(["cpm", 0, 0], [2, 0]), "node 1 of 'cpm' has an operation 2; there are"),
    "far level": (
        changed(["fpn", "2", 0], ["conv_3x3", 4]),
        r"level 2 of 'fpn': 'conv_3x3' reads 4; it may read .*\[2, 3\]",
    ),
    "level above the top": (changed(["fpn", "7", 0], ["conv_3x3", 8]), r"level 7 .* reads 8; .*\[6, 7\]"),
    "later node": (changed(["cpm", 1, 0], ["conv_3x3", 2]), r"node 2 of 'cpm': 'conv_3x3' reads 2; .*\[0, 1\]"),
    "source is a word": (changed(["cpm", 0, 0], ["conv_3x3", "0"]), "reads '0'; it may read"),
    "source is true": (changed(["cpm", 1, 0], ["conv_3x3", True]), "reads True; it may read"),
    "nothing read": (changed(["cpm", 1, 0], ["conv_3x3"]), "'conv_3x3' reads nothing"),
    "read twice": (changed(["fpn", "3", 0], ["conv_3x3", 3, 3]), r"reads a map twice, \[3, 3\]"),
    "empty node": (changed(["fpn", "3"], []), "level 3 of 'fpn' is .*, not a list of at least one branch"),
    "empty branch": (changed(["cpm", 1, 0], []), "node 2 of 'cpm' has an operation ''"),
    "branch is a word": (changed(["cpm", 1, 0], "conv_3x3"), "'cpm' has 'conv_3x3' where a list should be"),
    "a level is missing": (
        {**changed(["cpm"], [[["identity", 0]]]), "fpn": {"2": [["identity", 2]], "4": [["identity", 4]]}},
        "'fpn' has the levels 2, 4; they must be",
    ),
    "fpn is a list": (changed(["fpn"], [[["identity", 2]]]), "'fpn' is .*, not a dict by level"),
    "too few graphs": (
        changed(["cpm"], {"2": [[["identity", 0]]], "3": [[["identity", 0]]]}),
        "give one context graph, or one for each of 6 levels",
    ),
    "no context": (changed(["cpm"], []), "cpm=.*, which is no list of nodes"),
}


@pytest.mark.parametrize(("form", "message"), BROKEN.values(), ids=BROKEN)
def test_what_is_no_genotype_is_refused_with_its_place(form, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_genotype(form)
    if isinstance(form, dict):
        path = tmp_path / "found.json"
        path.write_text(json.dumps(form), "utf-8")
        with pytest.raises(ValueError, match=f"genotype='.*found.json': .*{message}"):
            read_genotype(path)


def test_files_that_are_none_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"genotype='.*none.json' does not exist; give a JSON file"):
        read_genotype(tmp_path / "none.json")
    for content in (b"{broken", b"[]", b"\xff\xfe\x00"):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"genotype='.*bad.json'"):
            read_genotype(tmp_path / "bad.json")
    with pytest.raises(ValueError, match="ops='d7' must be"):
        default_genotype("d7")


def test_levels_have_their_own_context_only_where_it_is_not_shared():
    own = GENOTYPES["per level"]
    assert not own.shared_cpm
    assert [own.context(level) for level in LEVELS] == list(own.cpm)
    shared = GENOTYPES["random"]
    assert shared.shared_cpm
    assert {shared.context(level) for level in LEVELS} == {shared.cpm[0]}
