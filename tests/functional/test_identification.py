"""Identification and templates against the reference results and plain loops."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lit_methods.functional.identification import aggregate_templates, rank1_identification, template_scores


def test_rank1_is_that_of_the_reference(vectors):
    file = np.load(vectors / "ddl" / "scface_rank1.npz")
    part = {key: torch.from_numpy(file[key]) for key in file}
    for g in range(3):
        found = rank1_identification(part["gallery"], part["gallery_id"], part[f"probe{g}"], part[f"probe_id{g}"])
        assert found == part[f"rank1_{g}"]
        assert (found.dtype, found.shape) == (torch.float64, ())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_rank1_is_what_a_plain_loop_gives(dtype):
    draw = torch.Generator().manual_seed(0)
    gallery, probes = (torch.randn(n, 6, generator=draw).to(dtype) for n in (30, 200))
    labels, wanted = (torch.randint(8, (n,), generator=draw) for n in (30, 200))
    right = 0
    for probe, label in zip(probes.double().numpy(), wanted, strict=True):
        cosines = [probe @ row / np.linalg.norm(row) for row in gallery.double().numpy()]
        right += int(labels[int(np.argmax(cosines))] == label)
    assert float(rank1_identification(gallery, labels, probes, wanted)) == right / 200
    assert 0 < right < 200


@pytest.mark.parametrize("size", [3, 64, 513])
def test_of_equally_near_entries_the_first_counts(size):
    draw = torch.Generator().manual_seed(0)
    row = torch.randn(size, generator=draw)
    scales = torch.linspace(0.3, 7, 37)  # of one direction, so equal but for rounding
    gallery, probes = row * scales[:, None], row * torch.rand(50, 1, generator=draw)
    for first in (0, 5):
        label = torch.full((50,), 100 - first)
        found = rank1_identification(gallery[first:], 100 - torch.arange(37)[first:], probes, label)
        assert found == 1


def test_a_probe_that_nobody_matches_is_wrong():
    rows = torch.eye(4)
    found = rank1_identification(rows, torch.arange(4), rows, torch.tensor([0, 1, 2, 99]))
    assert found == 0.75


def plain_templates(features, templates, medias):
    rows, ids = [], np.unique(templates)
    for template in ids:
        mine = templates == template
        means = [features[mine & (medias == media)].mean(0) for media in np.unique(medias[mine])]
        total = np.sum(means, axis=0)
        rows.append(total / np.linalg.norm(total))
    return np.stack(rows), ids


def test_templates_are_the_official_ones(vectors):
    file = np.load(vectors / "ddl" / "ijb_template.npz")
    part = {key: torch.from_numpy(file[key]) for key in file}
    rows, ids = aggregate_templates(part["features"], part["templates"], part["medias"])
    assert_close(rows, part["template_features"], rtol=1e-12, atol=1e-12)
    assert torch.equal(ids, part["unique_templates"])
    assert_close(template_scores(rows, ids, part["p1"], part["p2"]), part["scores"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize(("templates", "medias"), [(1, 1), (5, 3), (40, 1), (300, 90)])
def test_templates_are_what_a_plain_loop_gives(templates, medias, dtype):
    draw = torch.Generator().manual_seed(templates)
    features = torch.randn(300, 7, generator=draw).to(dtype)
    template = torch.randint(-5, templates, (300,), generator=draw) * 1000
    media = torch.randint(medias, (300,), generator=draw) - 50
    rows, ids = aggregate_templates(features, template, media)
    expected, expected_ids = plain_templates(features.double().numpy(), template.numpy(), media.numpy())
    assert ids.tolist() == expected_ids.tolist()
    assert rows.dtype == torch.float64
    np.testing.assert_allclose(rows, expected, rtol=1e-12, atol=1e-14)


def test_a_media_with_many_images_weighs_as_much_as_one_with_one():
    features = torch.tensor([[1.0, 0.0]] * 9 + [[0.0, 1.0]])
    medias = torch.tensor([4] * 9 + [6])
    rows, _ = aggregate_templates(features, torch.zeros(10).long(), medias)
    assert_close(rows, torch.full((1, 2), 0.5**0.5, dtype=torch.float64))


def test_scores_find_templates_by_id_in_any_order():
    draw = torch.Generator().manual_seed(0)
    rows, ids = torch.randn(50, 600, generator=draw), torch.randperm(50, generator=draw) * 7 - 20
    p1, p2 = (ids[torch.randint(50, (1000,), generator=draw)] for _ in range(2))
    place = {int(i): k for k, i in enumerate(ids)}
    expected = [rows[place[int(a)]].double() @ rows[place[int(b)]].double() for a, b in zip(p1, p2, strict=True)]
    assert_close(template_scores(rows, ids, p1, p2), torch.stack(expected), rtol=1e-12, atol=1e-12)
    assert template_scores(rows, ids, p1[:0], p2[:0]).shape == (0,)


ROWS, IDS = torch.eye(4), torch.arange(4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rank1_identification(ROWS[0], IDS, ROWS, IDS), r"gallery must be \(N, D\) floating point, got \(4,\)"),
        (lambda: rank1_identification(ROWS, IDS[:3], ROWS, IDS), r"gallery_labels must be \(4,\), as many as gallery"),
        (lambda: rank1_identification(ROWS, IDS, ROWS, IDS.float()), "probe_labels must be whole numbers"),
        (lambda: rank1_identification(ROWS[:0], IDS[:0], ROWS, IDS), "gallery is empty: 0 gallery entries and 4"),
        (lambda: rank1_identification(ROWS, IDS, ROWS[:0], IDS[:0]), "probes is empty"),
        (lambda: rank1_identification(ROWS, IDS, ROWS[:, :3], IDS), "one size D, got 4 and 3"),
        (lambda: rank1_identification(ROWS, IDS, ROWS / ROWS[0], IDS), "probes has 4 of 4 rows that are not finite"),
        (lambda: aggregate_templates(ROWS.long(), IDS, IDS), r"features must be \(N, D\) floating point.*int64"),
        (lambda: aggregate_templates(ROWS, IDS[:2], IDS), r"templates must be \(4,\), as many as features, got \(2,\)"),
        (lambda: aggregate_templates(ROWS, IDS, IDS > 1), "medias must be whole numbers such as int64, got torch.bool"),
        (lambda: aggregate_templates(ROWS[:0], IDS[:0], IDS[:0]), "features is empty"),
        (lambda: aggregate_templates(ROWS.log()[:, :1], IDS, IDS), "3 of 4 rows that are not finite.*index 1"),
        (lambda: template_scores(ROWS, IDS, IDS, IDS + 2), "template 4 of p1 and p2 is not among.*2 such"),
        (lambda: template_scores(ROWS[:0], IDS[:0], IDS, IDS), "template 0 .* not among the 0"),
        (lambda: template_scores(ROWS, IDS // 2, IDS, IDS), "template_ids has 0 more than once"),
        (lambda: template_scores(ROWS, IDS, IDS, IDS[:2]), r"p2 must be \(4,\), as many as p1, got \(2,\)"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
