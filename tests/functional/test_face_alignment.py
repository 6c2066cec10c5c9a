"""Faces brought to the reference points: known transforms come back."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lit_methods.functional.face_alignment import REFERENCE_POINTS, align_face, five_points, similarity_transform


def smooth(height, width):
    """A picture that is nearly linear from pixel to pixel."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 21 + phase) * np.cos(y / 17 - phase) for phase in (0, 1, 2)]
    return np.rint(127 + 120 * np.stack(waves, -1)).astype(np.uint8)


def turned(angle, scale, shift):
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[c, -s, shift[0]], [s, c, shift[1]]])


def moved(points, matrix):
    return points @ matrix[:, :2].T + matrix[:, 2]


def umeyama(points, reference):
    """The paper's way: singular values, and a sign that forbids reflections."""
    mean, target = points.mean(0), reference.mean(0)
    a, b = points - mean, reference - target
    u, d, v = np.linalg.svd(b.T @ a / len(a))
    sign = np.array([1, np.sign(np.linalg.det(u) * np.linalg.det(v))])
    rotation = u @ np.diag(sign) @ v
    scale = (d * sign).sum() / a.var(0).sum()
    return np.column_stack([scale * rotation, target - scale * rotation @ mean])


def test_reference_points_are_where_they_are():
    matrix = similarity_transform(REFERENCE_POINTS)
    np.testing.assert_allclose(matrix, [[1, 0, 0], [0, 1, 0]], atol=1e-12)


@pytest.mark.parametrize("angle", [0.0, 0.4, -2.5, np.pi])
@pytest.mark.parametrize("scale", [0.2, 7.0])
def test_a_known_transform_comes_back(angle, scale):
    there = turned(angle, scale, (40, -300))
    back = similarity_transform(moved(REFERENCE_POINTS, there))
    np.testing.assert_allclose(moved(moved(REFERENCE_POINTS, there), back), REFERENCE_POINTS, atol=1e-9)


def test_it_is_umeyamas_solution():
    random = np.random.default_rng(0)
    for _ in range(50):
        points = random.normal(50, 20, (5, 2))
        np.testing.assert_allclose(similarity_transform(points), umeyama(points, REFERENCE_POINTS), atol=1e-9)


def test_a_mirrored_face_is_not_mirrored_back():
    matrix = similarity_transform(REFERENCE_POINTS * [-1, 1])
    assert np.linalg.det(matrix[:, :2]) > 0
    np.testing.assert_allclose(matrix, umeyama(REFERENCE_POINTS * [-1, 1], REFERENCE_POINTS), atol=1e-9)


def test_a_face_in_place_is_not_changed():
    image = smooth(112, 112)
    assert np.array_equal(align_face(image, REFERENCE_POINTS), image)


@pytest.mark.parametrize(("angle", "scale"), [(0.0, 1.0), (0.5, 1.7), (-2.0, 0.8)])
def test_a_turned_and_shifted_copy_comes_back(angle, scale):
    there = turned(angle, scale, (150, 180))
    big = smooth(400, 420)
    points = moved(REFERENCE_POINTS, there)
    y, x = np.mgrid[:112, :112]
    places = moved(np.stack([x, y], -1).reshape(-1, 2), there)
    inside = ((places > 0) & (places < [419, 399])).all(1).reshape(112, 112)
    assert inside.mean() > 0.5
    waves = [np.sin(places[:, 0] / 21 + p) * np.cos(places[:, 1] / 17 - p) for p in (0, 1, 2)]
    expected = (127 + 120 * np.stack(waves, -1)).reshape(112, 112, 3)
    assert abs(align_face(big, points) - expected)[inside].max() < 1.6  # two roundings, and what bilinear flattens


def test_it_is_what_torch_samples():
    image = smooth(90, 130)
    points = moved(REFERENCE_POINTS, turned(0.3, 0.9, (20, -15)))
    matrix = similarity_transform(points)
    y, x = np.mgrid[:112, :112]
    places = (np.stack([x, y], -1) - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
    grid = torch.from_numpy(2 * places / [129, 89] - 1)[None]
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    sampled = F.grid_sample(planes, grid, padding_mode="zeros", align_corners=True)[0].permute(1, 2, 0).numpy()
    aligned = align_face(image, points)
    assert (sampled == 0).all(-1).mean() > 0.05  # some of it is outside
    assert abs(aligned - sampled).max() <= 0.5 + 1e-9


def test_outside_is_black():
    aligned = align_face(np.full((20, 20, 3), 200, np.uint8), REFERENCE_POINTS)
    assert (aligned[:20, :20] == 200).all()
    assert aligned[20:].max() == aligned[:, 20:].max() == 0


@pytest.mark.filterwarnings("error")  # NumPy warns of a cast that cannot be
def test_points_far_away_are_black_rather_than_an_overflow():
    assert not align_face(smooth(20, 20), REFERENCE_POINTS * 1e20 + 1e22).any()


def test_another_size_scales_the_reference():
    image = smooth(224, 224)
    assert np.array_equal(align_face(image, REFERENCE_POINTS * 2, size=224), image)
    assert align_face(image, REFERENCE_POINTS * 2, size=56).shape == (56, 56, 3)


def test_five_of_68_points():
    points = np.random.default_rng(0).normal(size=(68, 2))
    five = five_points(points)
    np.testing.assert_allclose(five[0], (points[36] + points[39]) / 2)
    np.testing.assert_allclose(five[1], (points[42] + points[45]) / 2)
    assert np.array_equal(five[2:], points[[30, 48, 54]])


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.full((5, 2), 3.0), r"points coincide at \(3, 3\); at least two must differ"),
        (np.full((5, 2), np.nan), "points must be finite"),
        (np.zeros((5, 3)), r"points must be \(n, 2\), x and y, got shape \(5, 3\)"),
        (np.zeros((4, 2)), "equally many, at least 2, got 4 and 5"),
    ],
)
def test_points_that_define_no_transform(points, message):
    with pytest.raises(ValueError, match=message):
        similarity_transform(points)


def test_a_reference_that_is_one_point():
    with pytest.raises(ValueError, match="no similarity brings points near reference"):
        similarity_transform(REFERENCE_POINTS, np.ones((5, 2)))


@pytest.mark.parametrize(
    ("image", "points", "size", "message"),
    [
        (np.zeros((8, 8), np.uint8), REFERENCE_POINTS, 112, r"image must be \(H, W, 3\) uint8, got \(8, 8\) uint8"),
        (np.zeros((8, 8, 3)), REFERENCE_POINTS, 112, "image must be .* float64"),
        (np.zeros((8, 8, 3), np.uint8), REFERENCE_POINTS[:4], 112, r"points must be \(5, 2\)"),
        (np.zeros((8, 8, 3), np.uint8), REFERENCE_POINTS, 0, "size must be at least 1, got 0"),
    ],
)
def test_other_pictures_and_points_are_refused(image, points, size, message):
    with pytest.raises(ValueError, match=message):
        align_face(image, points, size)


def test_other_numbers_of_landmarks_are_refused():
    with pytest.raises(ValueError, match=r"points68 must be \(68, 2\), got shape \(5, 2\)"):
        five_points(REFERENCE_POINTS)
