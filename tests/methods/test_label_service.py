"""HTTPLabelService against a local server: what it sends, what it reads, and what it refuses to send."""

import base64
import io
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from lit_methods.ppba.service import HTTPLabelService, ServiceError, default_parse
from tests.methods.label_server import (
    CAT,
    KEY,
    PAIRS,
    Reply,
    pictures,
    saying,
    sent_pixels,
)

# -- what is sent ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_service_gets_exactly_the_rounded_image(server, dtype):
    images = pictures(2).to(dtype)
    images[0, :, 0] = torch.tensor([-0.3, 0.0, 0.5, 1.0, 1.7, 127.5 / 255, 0.49999 / 255], dtype=dtype)
    halves = (torch.arange(35, dtype=torch.float64) + 0.5).div(255).to(dtype).view(5, 7)
    images[1] = torch.stack([halves, halves.nextafter(halves * 0), halves.nextafter(halves + 1)])
    service = server.service()
    assert service(images) == [PAIRS, PAIRS]
    assert (service.queries, service.failures) == (2, 0)
    for image, seen in zip(images.numpy().astype(np.float64), server.seen, strict=True):
        expected = np.floor(255 * np.clip(image, 0, 1) + 0.5).astype(np.uint8).transpose(1, 2, 0)
        np.testing.assert_array_equal(sent_pixels(seen), expected)
        assert (seen["method"], seen["headers"]["Content-Type"]) == ("POST", "image/png")


def test_eight_bit_images_arrive_as_they_are(server):
    levels = torch.arange(256).view(1, 1, 16, 16)
    server.service()(levels / 255)
    assert Image.open(io.BytesIO(server.seen[0]["body"])).mode == "L"
    np.testing.assert_array_equal(sent_pixels(server.seen[0]), levels[0, 0].numpy())


def test_json_holds_the_same_png(server):
    server.service("png")(pictures())
    server.service("json")(pictures())
    sent = json.loads(server.seen[1]["body"])
    assert sent == {"image": base64.b64encode(server.seen[0]["body"]).decode()}
    assert server.seen[1]["headers"]["Content-Type"] == "application/json"


def test_an_encoder_of_ones_own(server):
    server.service(lambda array: (bytes(array.shape) + array.tobytes(), "application/x-mine"))(torch.ones(1, 2, 3, 4))
    assert server.seen[0]["body"] == bytes([3, 4, 2]) + b"\xff" * 24
    assert server.seen[0]["headers"]["Content-Type"] == "application/x-mine"


def test_key_and_login_reach_the_service(server):
    host = server.url.removeprefix("http://")
    HTTPLabelService(f"http://me:{KEY}%40@{host}?k={KEY}#part", headers={"x-api-key": KEY})(pictures())
    HTTPLabelService(f"http://me@{host}", headers={"authorization": f"Bearer {KEY}"})(pictures())
    first, second = server.seen
    assert base64.b64decode(first["headers"]["Authorization"].removeprefix("Basic ")).decode() == f"me:{KEY}@"
    assert (first["headers"]["X-Api-Key"], first["path"]) == (KEY, f"/classify?k={KEY}")
    assert second["headers"].get_all("Authorization") == [f"Bearer {KEY}"]


def test_proxies_come_from_the_environment(server, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url.removesuffix("/classify"))
    assert HTTPLabelService("http://no.such.host.invalid/classify")(pictures()) == [PAIRS]
    assert server.seen[0]["path"] == "http://no.such.host.invalid/classify"


# -- what comes back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        CAT,
        CAT[::-1],
        *({name: CAT, "time": 0.1} for name in ("labels", "predictions", "results", "outputs")),
        [["cat", 0.9], ["dog", 0.05]],
        {"dog": 0.05, "cat": 0.9},
        {"results": {"dog": 0.05, "cat": 0.9}},
        {"labels": ["cat", "dog"], "scores": [0.9, 0.05]},
        {"outputs": {"predictions": CAT}},
    ],
)
def test_usual_answers(server, answer):
    server.replies.append(saying(answer))
    assert server.service()(pictures()) == [PAIRS]


@pytest.mark.parametrize(
    ("answer", "pairs"),
    [
        (["cat", "dog"], [("cat", 1.0), ("dog", 1.0)]),
        ({"label": "cat", "score": 1}, [("cat", 1.0)]),
        ([{"label": 3, "score": 0.5}], [("3", 0.5)]),
        ([], []),
        ({"labels": []}, []),
    ],
)
def test_other_answers(server, answer, pairs):
    server.replies.append(saying(answer))
    assert server.service()(pictures()) == [pairs]


NONSENSE = [
    b"<html>gateway</html>",
    b"",
    b"\xff\xfe\xff",
    b"[" * 100_000,
    b"null",
    b"3",
    b'"cat"',
    b"{}",
    b'{"error": "quota"}',
    b'{"error": true}',
    b"[0.1, 0.9]",
    b"[[0.1, 0.9]]",
    b'[["cat", "0.9"]]',
    b'[["cat"]]',
    b'[{"label": "cat"}]',
    b'[{"label": ["cat"], "score": 0.9}]',
    b'{"labels": ["cat", "dog"], "scores": [0.9]}',
]


@pytest.mark.parametrize("body", NONSENSE, ids=lambda body: body[:24].decode("latin-1"))
def test_nonsense_is_a_query_and_asked_again(server, body):
    server.replies += [Reply(body), Reply(body)]
    service = server.service(tries=2)
    with pytest.raises(ServiceError, match=r"(no JSON|in parse).*\(tried 2 times\)\. (See that url|Give parse=)"):
        service(pictures())
    assert (service.queries, service.failures) == (2, 0)
    server.replies += [Reply(body)]
    assert service(pictures()) == [PAIRS]
    assert service.queries == 4


def test_scores_that_are_not_finite_are_nan_and_last(server):
    server.replies.append(Reply(b'{"a": NaN, "b": 0.1, "c": Infinity, "d": 0.7, "e": null, "f": 1e999}'))
    (pairs,) = server.service()(pictures())
    assert pairs[:2] == [("d", 0.7), ("b", 0.1)]
    assert [label for label, _ in pairs[2:]] == ["a", "c", "e", "f"]
    assert all(math.isnan(score) for _, score in pairs[2:])


def test_a_parser_of_ones_own(server):
    server.replies.append(saying({"tags": [{"name": "dog", "confidence": 5}, {"name": "cat", "confidence": 90}]}))
    parse = lambda answer: [(tag["name"], tag["confidence"] / 100) for tag in answer["tags"]]  # noqa: E731
    assert server.service(parse=parse)(pictures()) == [PAIRS]
    with pytest.raises(ServiceError, match=r"TypeError in parse, which was given a list of 2 \(tried 1 time\)"):
        server.service(parse=parse, tries=1)(pictures())


def test_a_matrix_of_log_scores(server):
    server.replies += [saying({"dog": 0.25, "sky": 0.7}), saying([["dog", 0.1], ["dog", 0.5], ["cat", 0]]), Reply(b"")]
    with pytest.warns(UserWarning, match="no JSON"):
        scores = server.service(classes=["cat", "dog"], tries=1, on_failure="nan")(pictures(3))
    floor = math.log(1e-12)
    expected = torch.tensor([[floor, math.log(0.25)], [floor, math.log(0.5)], [math.nan] * 2], dtype=torch.float64)
    assert_close(scores, expected, equal_nan=True)
    assert server.service(classes=["cat", "dog"])(pictures(0)).shape == (0, 2)
    assert server.service()(pictures(0)) == []


def test_nothing_is_guessed():
    with pytest.raises(ValueError, match="empty object"):
        default_parse({})
    with pytest.raises(TypeError, match="neither a list"):
        default_parse("cat")


# -- arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("encode", "jpeg"),
        ("parse", "json"),
        ("timeout", 0),
        ("timeout", math.nan),
        ("tries", 0),
        ("backoff", -1),
        ("min_interval", math.inf),
        ("max_queries", 0),
        ("on_failure", "none"),
        ("classes", []),
        ("classes", "cat"),
        ("classes", ["cat", "cat"]),
    ],
)
def test_bad_arguments_are_named(argument, value):
    with pytest.raises(ValueError, match=f"{argument}=.*must be"):
        HTTPLabelService("http://127.0.0.1/", **{argument: value})


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.rand(3, 5, 5), r"got torch.float32 \(3, 5, 5\)"),
        (torch.zeros(1, 3, 5, 5, dtype=torch.uint8), "uint8"),
        (torch.zeros(1, 3, 0, 5), "got"),
        (np.zeros((1, 3, 5, 5), np.float32), "ndarray"),
        (torch.full((1, 3, 5, 5), math.nan), "NaN or infinity"),
        (torch.full((1, 3, 5, 5), math.inf), "NaN or infinity"),
        (torch.zeros(1, 4, 5, 5), "1 or 3 channels, got 4"),
    ],
)
def test_bad_images_are_not_sent(server, images, words):
    service = server.service()
    with pytest.raises(ValueError, match=words):
        service(images)
    assert not server.seen
