"""Genotypes, their three forms, slimming and recipes, against the official code and the authors' files."""

import csv
import json
import pickle

import numpy as np
import pytest
import torch

from lit_methods.bpe_mip.search_space import (
    BPE1,
    DARTS_DEFAULT,
    EDGES,
    FULL,
    NODE_EDGES,
    PRESETS,
    PRIMITIVES,
    Genotype,
    Recipe,
    genotype_from_sample28,
    named_recipe,
    parse_alpha,
    random_genotype,
    read_genotypes,
    sample28_from_genotype,
    slim_by_probability,
    slim_masks,
    slim_with_masks,
    tied_lr,
)

EMPTY = [[], [], [], []]
FILES = ["ground_truth", "random", "random_search", "darts_search", "rl_ea", "final_models"]


def load(vectors, name):
    with np.load(vectors / "bpe_mip" / f"{name}.npz") as file:
        return dict(file)


def decoded(array):
    """A genotype of the vectors' (2 cells, 4 nodes, 5 slots, 2)."""
    cells = [[[(PRIMITIVES[op], int(s)) for op, s in node if op >= 0] for node in cell] for cell in array]
    return Genotype(*cells)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def authors_file(shared, name):
    return shared / "data" / "bpe_mip" / f"{name}{'' if name == 'final_models' else '_architectures'}.json"


# decoding


def test_scores_are_decoded_as_officially(vectors):
    official = load(vectors, "genotype")
    for weights, genotype in zip(official["weights"], official["genotype_from_weights"], strict=True):
        assert parse_alpha(weights) == decoded(genotype)
        assert parse_alpha(torch.from_numpy(weights)) == decoded(genotype)


def test_samples_are_decoded_as_officially_and_come_back(vectors):
    official = load(vectors, "genotype")
    for sample, genotype in zip(official["sample28"], official["genotype_from_sample"], strict=True):
        found = genotype_from_sample28(sample)
        assert found == decoded(genotype)
        assert sample28_from_genotype(found) == sample.tolist()


def test_column_of_none_is_ignored():
    alpha = torch.randn(28, 8, generator=seeded())
    loud = alpha.clone()
    loud[:, 7] = 100
    assert parse_alpha(loud) == parse_alpha(alpha)


def test_of_equal_scores_the_lowest_index_wins():
    genotype = parse_alpha(np.zeros((28, 8)))
    assert genotype.normal == genotype.reduce == ((("max_pool_3x3", 0), ("max_pool_3x3", 1)),) * 4


def test_k_edges_are_kept_where_there_are_so_many():
    alpha = torch.randn(28, 8, generator=seeded())
    assert [len(node) for node in parse_alpha(alpha, k=3).reduce] == [2, 3, 3, 3]
    assert [len(node) for node in parse_alpha(alpha, k=1).reduce] == [1, 1, 1, 1]
    assert [len(node) for node in parse_alpha(alpha, k=9).reduce] == [2, 3, 4, 5]


def test_edges_stand_in_falling_order_of_their_scores():
    alpha = torch.zeros(28, 8)
    alpha[[9, 12, 13], [3, 4, 5]] = torch.tensor([1.0, 3.0, 2.0])  # of the last node of the normal cell
    assert parse_alpha(alpha, k=3).normal[3] == (("sep_conv_5x5", 3), ("dil_conv_3x3", 4), ("sep_conv_3x3", 0))


def test_edges_are_listed_as_the_nodes_cut_them():
    assert len(EDGES) == 28
    for number, edges in enumerate(NODE_EDGES):
        cell, node = ("normal", "reduce")[number // 4], number % 4
        assert EDGES[edges] == tuple((cell, node, source) for source in range(node + 2))


def test_random_genotypes_are_slim_differ_and_come_again():
    drawn = [random_genotype(generator) for generator in [seeded()] for _ in range(20)]
    assert len({genotype.key() for genotype in drawn}) == 20
    assert drawn[0] == random_genotype(seeded())
    assert all(len(node) == 2 for genotype in drawn for cell in (genotype.normal, genotype.reduce) for node in cell)
    assert {name for genotype in drawn for node in genotype.normal for name, _ in node} == {*PRIMITIVES[:7]}


def test_random_genotype_is_decoded_from_normal_scores():
    scores = torch.randn(28, 8, dtype=torch.float64, generator=seeded(3))
    assert random_genotype(seeded(3)) == parse_alpha(scores)


# genotypes and their forms


@pytest.mark.parametrize("name", FILES)
def test_the_authors_genotypes_go_round(shared, name):
    path = authors_file(shared, name)
    raw, genotypes = json.loads(path.read_text()), read_genotypes(path)
    assert len(raw) == len(genotypes) > 0
    for item, genotype in zip(raw, genotypes, strict=True):
        assert genotype.to_dict() == {"normal": item["normal"], "reduce": item["reduce"]}
        assert Genotype.from_dict(json.loads(json.dumps(genotype.to_dict()))) == genotype
        assert Genotype.parse(repr(genotype)) == genotype
        again = genotype_from_sample28(sample28_from_genotype(genotype))
        assert again.key() == genotype.key()
        assert {*map(frozenset, again.normal)} == {*map(frozenset, genotype.normal)}


@pytest.mark.parametrize("name", ["ground_truth", "random_search"])
def test_the_authors_samples_are_their_genotypes(shared, name):
    genotypes = read_genotypes(str(authors_file(shared, name)))
    with (shared / "data" / "bpe_mip" / f"{name}.csv").open() as file:
        rows = [list(map(int, row["sample28"].split())) for row in csv.DictReader(file)]
    assert [sample28_from_genotype(genotype) for genotype in genotypes] == rows


def test_absent_edges_and_empty_nodes_go_round():
    generator = seeded()
    for _ in range(50):
        sample = torch.randint(8, (28,), generator=generator)
        assert sample28_from_genotype(genotype_from_sample28(sample)) == sample.tolist()
    assert genotype_from_sample28([7] * 28) == Genotype(EMPTY, EMPTY)


def test_genotype_is_a_key_and_does_not_change():
    one, other = (
        Genotype([[["skip_connect", a], ["skip_connect", b]], [], [], []], EMPTY) for a, b in ((0, 1), (1, 0))
    )
    assert one != other
    assert one.key() == other.key()
    assert {one: 1}[Genotype.from_dict(one.to_dict())] == 1
    assert pickle.loads(pickle.dumps(one)) == one
    with pytest.raises(AttributeError):
        one.normal = ()


def test_sources_may_be_numpy_numbers():
    genotype = Genotype([[["skip_connect", np.int64(1)]], [], [], []], EMPTY)
    assert json.loads(json.dumps(genotype.to_dict()))["normal"][0] == [["skip_connect", 1]]


PAIRS = "[('sep_conv_3x3', 1), ('skip_connect', 0), ('max_pool_3x3', 2), ('avg_pool_3x3', 0)" + (
    ", ('dil_conv_5x5', 3), ('sep_conv_5x5', 0), ('dil_conv_3x3', 4), ('skip_connect', 2)]"
)
DARTS = f"Genotype(normal={PAIRS}, normal_concat=range(2, 6), reduce={PAIRS}, reduce_concat=[2, 3, 4, 5])"


def test_text_of_darts_is_read():
    genotype = Genotype.parse(DARTS)
    assert genotype.normal == genotype.reduce
    assert genotype.normal[1] == (("max_pool_3x3", 2), ("avg_pool_3x3", 0))
    assert Genotype.parse(json.dumps(genotype.to_dict())) == genotype


def test_files_in_either_form_are_read(tmp_path):
    genotype = Genotype.parse(DARTS)
    plain = genotype.to_dict()
    forms = {
        "one": (json.dumps(plain | {"id": "Genotype(x)"}), 1),
        "nested": (json.dumps({"genotype": plain, "accuracy": 0.5}), 1),
        "list": (json.dumps([plain, {"genotype": plain}]), 2),
        "nested list": (json.dumps({"genotype": [plain, plain]}), 2),
        "python": (f"# found\nA = {DARTS}\nB = {DARTS}\n{DARTS}\n", 3),
        "python list": (f"[{DARTS}, {DARTS}]", 2),
    }
    for name, (text, count) in forms.items():
        path = tmp_path / name
        path.write_text(text)
        assert read_genotypes(path) == read_genotypes(text) == [genotype] * count


@pytest.mark.parametrize(
    ("normal", "message"),
    [
        ([[], [], []], "which is not a list of 4 nodes; a genotype has"),
        (None, "normal=None, which is not a list of 4 nodes"),
        ("sep_conv_3x3", "not a list of 4 nodes"),
        ([[], [], [], 3], "node 3 of the cell 'normal' is 3, not a list of pairs"),
        ([[["sep_conv_3x3"]], [], [], []], "not an operation and a source"),
        ([[[3, 0]], [], [], []], "not an operation and a source"),
        ([[["sep_conv_3x33", 0]], [], [], []], "'sep_conv_3x33'; did you mean 'sep_conv_3x3'"),
        ([[["none", 0]], [], [], []], "'none' on state 0; leave the edge out"),
        ([[["skip_connect", 2]], [], [], []], "reads the state 2; it may read the whole numbers 0 to 1"),
        ([[], [["skip_connect", -1]], [], []], "reads the state -1; it may read the whole numbers 0 to 2"),
        ([[["skip_connect", True]], [], [], []], "reads the state True"),
        ([[["skip_connect", 0.0]], [], [], []], "reads the state 0.0"),
        ([[["skip_connect", None]], [], [], []], "reads the state None"),
        ([[["skip_connect", 0], ["sep_conv_3x3", 0]], [], [], []], "reads state 0 twice; give each source one"),
    ],
)
def test_what_is_wrong_with_a_genotype_is_said_in_one_line(normal, message):
    for build in (lambda: Genotype(normal, EMPTY), lambda: Genotype.from_dict({"normal": normal, "reduce": EMPTY})):
        with pytest.raises(ValueError, match=message) as error:
            build()
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("given", [None, 3, [], "text", {}, {"normal": EMPTY}, {"reduce": EMPTY}, [EMPTY, EMPTY]])
def test_what_is_no_genotype_at_all_is_refused(given):
    with pytest.raises(ValueError, match="a genotype has 'normal' and 'reduce'"):
        Genotype.from_dict(given)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        "[" * 100_000,
        "nonsense",
        "Genotype(",
        "Genotype()",
        "Genotype(normal=[], reduce=[])",
        "Genotype(normal=__import__('os').getcwd(), reduce=[])",
        "print(1) or Genotype(normal=[], reduce=[])",
        "import os; Genotype(normal=[], reduce=[])",
        "os.Genotype(normal=[], reduce=[])",
        f"Genotype({PAIRS}, {PAIRS})",
        f"Genotype(**{{'normal': {PAIRS}, 'reduce': {PAIRS}}})",
        DARTS.replace("Genotype(", "Genotype(3, "),
        DARTS.replace("range(2, 6)", "range(10 ** 9)"),
        DARTS.replace("range(2, 6)", "range(0, 99, 0)"),
        DARTS.replace("range(2, 6)", "range(5, 6)"),
        DARTS.replace("'sep_conv_3x3', 1", "'sep_conv_3x3', 0"),
        DARTS.replace(", ('skip_connect', 0)", ""),
        DARTS.replace("sep_conv_3x3", "sepconv"),
        DARTS + DARTS,
        f"{DARTS}\n{DARTS}",
        "Genotype(normal=" + "(" * 1000 + ")" * 1000 + ", reduce=[])",
        "\0Genotype(",
    ],
)
def test_what_is_not_one_genotype_is_refused_as_text(text):
    with pytest.raises(ValueError, match=r"genotype|Genotype|state|operation"):
        Genotype.parse(text)


def test_nothing_in_a_text_is_run(tmp_path):
    trap = tmp_path / "trap"
    for text in (f"Genotype(normal=open({str(trap)!r}, 'w'), reduce=[])", f"open({str(trap)!r}, 'w'); {DARTS}"):
        with pytest.raises(ValueError, match="Genotype"):
            read_genotypes(text)
    assert not trap.exists()


def test_what_is_wrong_with_a_file_names_it_and_the_place(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*gone\.json"):
        read_genotypes(tmp_path / "gone.json")
    with pytest.raises(ValueError, match="cannot be read as text"):
        read_genotypes(tmp_path)
    path = tmp_path / "cells.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="cannot be read as text"):
        read_genotypes(path)
    path.write_text(json.dumps([{"normal": EMPTY, "reduce": EMPTY}, {"normal": EMPTY}]))
    with pytest.raises(ValueError, match=r"cells.json', genotype 1: this is no genotype"):
        read_genotypes(path)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ([0] * 27, r"28 whole numbers, .*got shape \(27,\)"),
        (torch.zeros(2, 28, dtype=torch.int64), r"got shape \(2, 28\)"),
        ([0.0] * 28, "float64"),
        ([[1], [1, 2]], "28 whole numbers"),
        (None, "28 whole numbers"),
        ([True] * 28, "bool"),
        ([8] + [0] * 27, r"operation 8; give numbers from 0 to 7 \(7 = edge absent\)"),
        ([-1] + [0] * 27, "operation -1"),
    ],
)
def test_what_is_wrong_with_a_sample_is_said(sample, message):
    with pytest.raises(ValueError, match=message):
        genotype_from_sample28(sample)


def test_what_is_wrong_with_scores_is_said():
    with pytest.raises(ValueError, match=r"alpha must have shape \(28, 8\), got \(14, 8\)"):
        parse_alpha(torch.zeros(14, 8))
    with pytest.raises(ValueError, match="alpha has NaN"):
        parse_alpha(torch.full((28, 8), float("nan")))
    with pytest.raises(ValueError, match="k=0 edges per node"):
        parse_alpha(torch.zeros(28, 8), k=0)


# slimming


def test_slimming_by_probability_is_the_official_one(vectors):
    official = load(vectors, "slimming")
    names = "probabilities", "actions", "rewards"
    best = int(official["best_index"])
    assert official["rewards"][1:].argmax() + 1 == best
    slim = slim_by_probability(*(official[name] for name in names))
    assert slim == official["slim_sample"].tolist()
    assert slim_by_probability(*(torch.from_numpy(official[name]) for name in names)) == slim


def test_slimming_by_masks_is_the_official_one(vectors):
    official = load(vectors, "slimming")
    slim = slim_with_masks(official["ea_parent"], official["ea_keep_mask"])
    assert slim.dtype == torch.int64
    assert np.array_equal(slim, official["ea_slim_samples"])


def test_first_step_cannot_be_the_best():
    actions = torch.tensor([[1] * 28, [2] * 28, [3] * 28])
    slim = slim_by_probability(torch.ones(3, 28, 7), actions, [0.9, 0.2, 0.3])
    assert {*slim} == {3, 7}


def test_masks_keep_two_inputs_per_node_and_each_pair_alike():
    masks = slim_masks(seeded(), n=6000)
    assert masks.dtype == torch.int64
    assert {*masks.unique().tolist()} == {0, 1}
    for edges in NODE_EDGES:
        assert (masks[:, edges].sum(1) == 2).all()
    share = masks[:, NODE_EDGES[3]].double().mean(0)
    torch.testing.assert_close(share, torch.full((5,), 0.4, dtype=torch.float64), rtol=0, atol=0.03)
    assert torch.equal(slim_masks(seeded()), masks[:10])


def test_what_is_wrong_with_slimming_is_said():
    p, a, r = torch.ones(3, 28, 7), torch.zeros(3, 28, dtype=torch.int64), torch.rand(3)
    with pytest.raises(ValueError, match=r"rewards has 1 step\(s\)"):
        slim_by_probability(p[:1], a[:1], r[:1])
    with pytest.raises(ValueError, match=r"probabilities must have shape \(3, 28, 7\), got \(2, 28, 7\)"):
        slim_by_probability(p[:2], a, r)
    with pytest.raises(ValueError, match="actions has 2 steps and rewards 3"):
        slim_by_probability(p, a[:2], r)
    with pytest.raises(ValueError, match="n=0 masks"):
        slim_masks(seeded(), n=0)
    with pytest.raises(ValueError, match="masks must be 0"):
        slim_with_masks(a[0], torch.full((1, 28), 2))
    with pytest.raises(ValueError, match=r"masks must have shape \(T, 28\)"):
        slim_with_masks(a[0], torch.ones(28))


# recipes


def test_presets_are_those_of_the_paper():
    assert list(PRESETS) == ["BPE1", "BPE2", "FULL", "DARTS_DEFAULT"]
    rows = {name: tuple(recipe.to_dict().values()) for name, recipe in PRESETS.items()}
    assert rows == {
        "BPE1": (10, 128, 0.03, 6, 32, 8, 0, 16),
        "BPE2": (30, 128, 0.03, 16, 32, 16, 0, 16),
        "FULL": (600, 96, 0.025, 20, 32, 36, 16, 32),
        "DARTS_DEFAULT": (50, 64, 0.025, 8, 32, 16, 0, 32),
    }
    assert list(BPE1.to_dict()) == ["epochs", "batch_size", "lr", "layers", "fp", "channels", "cutout", "image_size"]


def test_rate_of_a_batch_size_is_that_of_the_trials(shared):
    with (shared / "data" / "bpe_mip" / "trials.csv").open() as file:
        for trial in csv.DictReader(file):
            assert tied_lr(int(trial["batch_size"])) == float(trial["lr"])


def test_rate_of_other_batch_sizes_is_that_of_the_next_lower_one():
    sizes = {1: 0.025, 64: 0.025, 127: 0.025, 128: 0.03, 255: 0.03, 256: 0.06, 511: 0.06, 512: 0.1, 1024: 0.1}
    assert {size: tied_lr(size) for size in sizes} == sizes
    with pytest.raises(ValueError, match="batch_size=0"):
        tied_lr(0)


@pytest.mark.parametrize("name", ["BPE1", "bpe1", "BPE-1", "bpe_1", " Bpe1 "])
def test_preset_is_found_however_it_is_written(name):
    assert named_recipe(name) is BPE1


def test_recipe_is_taken_in_every_form():
    assert named_recipe(FULL) is FULL
    assert named_recipe("darts-default") is DARTS_DEFAULT
    assert named_recipe(FULL.to_dict()) == FULL
    assert named_recipe({"preset": "full"}) == FULL
    assert named_recipe({"preset": FULL, "epochs": 3}) == FULL.replace(epochs=3)
    assert named_recipe({"preset": "BPE1", "batch_size": 256, "epochs": 20}).to_dict() == BPE1.to_dict() | {
        "batch_size": 256,
        "epochs": 20,
        "lr": 0.06,
    }
    assert named_recipe({"preset": "BPE1", "batch_size": 256, "lr": 0.2}).lr == 0.2
    tied = {name: value for name, value in FULL.to_dict().items() if name != "lr"}
    assert Recipe.from_dict(tied) == FULL


def test_recipe_is_a_key_and_plain_numbers():
    recipe = BPE1.replace(epochs=np.int64(30), lr=np.float32(0.5), image_size=32.0)
    assert recipe.key() == "epochs=30,batch_size=128,lr=0.5,layers=6,fp=32,channels=8,cutout=0,image_size=32"
    assert {recipe: 1}[Recipe.from_dict(json.loads(json.dumps(recipe.to_dict())))] == 1
    assert BPE1.replace(lr=1).key() == BPE1.replace(lr=1.0).key()
    assert len({preset.key() for preset in PRESETS.values()}) == 4
    with pytest.raises(AttributeError):
        recipe.epochs = 3


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("epochs", 0, "epochs=0: give a whole number of at least 1"),
        ("epochs", "ten", "epochs='ten': give a whole number"),
        ("batch_size", 1.5, "batch_size=1.5"),
        ("batch_size", -3, "batch_size=-3"),
        ("batch_size", float("inf"), "batch_size=inf"),
        ("layers", True, "layers=True"),
        ("channels", None, "channels=None"),
        ("cutout", -1, "cutout=-1: give a whole number of at least 0"),
        ("image_size", 2, "image_size=2: give a whole number of at least 4"),
        ("image_size", 18, "image_size=18 is not a multiple of 4, .*; give 16 or 20"),
        ("fp", 8, "fp=8 bits: give 16 or 32"),
        ("lr", 0, "lr=0: give a learning rate above 0, such as 0.03"),
        ("lr", float("nan"), "lr=nan"),
        ("lr", float("inf"), "lr=inf"),
        ("epoch", 3, "recipe has no 'epoch'; did you mean 'epochs'"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_said(name, value, message):
    changed = BPE1.to_dict() | {name: value}
    for build in (
        lambda: BPE1.replace(**{name: value}),
        lambda: named_recipe(changed),
        lambda: named_recipe({"preset": "BPE1", name: value}),
    ):
        with pytest.raises(ValueError, match=message):
            build()


def test_what_is_no_recipe_is_said():
    with pytest.raises(ValueError, match="there is no recipe 'DARTS_DEFAUL'; did you mean 'DARTS_DEFAULT'"):
        named_recipe("DARTS_DEFAUL")
    with pytest.raises(ValueError, match="recipe lacks epochs, batch_size, lr; give them, or preset: one of BPE1"):
        named_recipe(
            {name: value for name, value in BPE1.to_dict().items() if name not in ("epochs", "lr", "batch_size")}
        )
    with pytest.raises(ValueError, match=r"recipe=\[1\]"):
        named_recipe([1])
    with pytest.raises(ValueError, match="this is no recipe: None"):
        Recipe.from_dict(None)
