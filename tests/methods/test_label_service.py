"""HTTPLabelService against a real local server that answers, fails, hangs, throttles and talks nonsense."""

import base64
import copy
import io
import json
import math
import os
import pickle
import ssl
import threading
import time
import traceback
import warnings
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from lit_methods.ppba import Ledger, LowFrequencyProjection, PPBAAttack, label_score_loss, low_frequency_indices
from lit_methods.ppba.service import HTTPLabelService, QueryBudgetExceeded, ServiceError, default_parse

CAT = [{"label": "cat", "score": 0.9}, {"label": "dog", "score": 0.05}]
PAIRS = [("cat", 0.9), ("dog", 0.05)]
KEY = "s3cr3tK3y"


@dataclass
class Reply:
    body: bytes = json.dumps(CAT).encode()
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    reason: str | None = None
    length: int | None = None  # announced; what is missing is never sent
    chunked: bool = False
    wait: float = 0.0  # before anything is sent
    trickle: float = 0.0  # between two bytes
    silent: bool = False  # hangs up


def saying(answer: Any) -> Reply:
    return Reply(json.dumps(answer).encode())


class Server(ThreadingHTTPServer):
    """Gives its replies one after the other, then good ones; keeps what it was sent."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.seen: list[dict[str, Any]] = []
        self.closing = threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/classify"

    def service(self, *args: Any, **kwargs: Any) -> HTTPLabelService:
        return HTTPLabelService(self.url, *args, **{"timeout": 5.0, "backoff": 0.001} | kwargs)

    def handle_error(self, *args: Any) -> None:  # a client that has gone
        pass


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        server = self.server
        server.seen.append({"method": self.command, "path": self.path, "headers": self.headers, "body": body})
        reply = server.replies.pop(0) if server.replies else Reply()
        server.closing.wait(reply.wait)
        if reply.silent:
            self.close_connection = True
            return
        self.send_response(reply.status, reply.reason)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if reply.chunked:
            self.send_header("Transfer-Encoding", "chunked")
            reply.body = b"%x\r\n%s\r\n" % (len(reply.body), reply.body) + (b"" if reply.length else b"0\r\n\r\n")
        else:
            self.send_header("Content-Length", str(reply.length or len(reply.body)))
        self.end_headers()
        for part in [reply.body] if not reply.trickle else [bytes([byte]) for byte in reply.body]:
            self.wfile.write(part)
            server.closing.wait(reply.trickle)
        self.close_connection = True

    do_POST = do_GET

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch):
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()
    thread.join(5)


class Time:
    """A clock that only sleeping moves."""

    def __init__(self, service: HTTPLabelService) -> None:
        self.now, self.slept = 100.0, []
        service._clock, service._sleep = lambda: self.now, self.sleep

    def sleep(self, seconds: float) -> None:
        if seconds:
            self.slept.append(seconds)
        self.now += seconds


def pictures(count: int = 1, channels: int = 3) -> torch.Tensor:
    return torch.rand(count, channels, 5, 7, generator=torch.Generator().manual_seed(0))


def sent_pixels(seen: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(seen["body"])))


# -- what is sent -----------------------------------------------------------------------------------------------------


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


# -- what comes back --------------------------------------------------------------------------------------------------


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


# -- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_service_is_asked_again_at_no_cost(server, status):
    server.replies += [Reply(status=status), Reply(status=status)]
    service = server.service()
    assert service(pictures(2)) == [PAIRS, PAIRS]
    assert (service.queries, service.failures, len(server.seen)) == (2, 2, 4)
    assert server.seen[0]["body"] == server.seen[2]["body"] != server.seen[3]["body"]


CUT = {
    "hangs up": Reply(silent=True),
    "hangs": Reply(wait=30),
    "trickles": Reply(trickle=0.05),
    "cut off": Reply(b'[["cat"', length=200),
    "cut off where it is still JSON": Reply(b'[["cat", 0.9]]', length=200),
    "cut off in chunks": Reply(b'[["cat", 0.9]]', chunked=True, length=200),
}


@pytest.mark.parametrize("reply", CUT.values(), ids=CUT)
def test_answers_that_never_end_are_not_counted(server, reply):
    server.replies += [copy.copy(reply), copy.copy(reply)]
    service = server.service(timeout=0.25, tries=2)
    start = time.monotonic()
    with pytest.raises(
        ServiceError, match=r"no answer within timeout=0.25 s|answer was cut off|closed without an answer"
    ):
        service(pictures())
    assert time.monotonic() - start < 3
    assert (service.queries, service.failures) == (0, 2)
    assert service(pictures()) == [PAIRS]


def test_chunks_are_put_together(server):
    server.replies.append(Reply(chunked=True))
    assert server.service()(pictures()) == [PAIRS]


def test_a_flood_is_left(server):
    server.replies.append(Reply(b" " * (17 * 2**20), length=2**40))
    service = server.service(tries=1)
    with pytest.raises(ServiceError, match="no JSON"):
        service(pictures())
    assert service.queries == 1


def test_a_server_that_is_not_there():
    closed = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    port = closed.server_port
    closed.server_close()
    service = HTTPLabelService(f"http://127.0.0.1:{port}/classify", backoff=0.001)
    with pytest.raises(ServiceError) as caught:
        service(pictures())
    assert str(caught.value) == (
        f"http://127.0.0.1:{port}/classify: Connection refused (tried 5 times). "
        "See that it is up and the host in url is right; or raise tries, backoff or timeout."
    )
    assert (service.queries, service.failures) == (0, 5)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (301, r"HTTP 301 \(Moved Permanently\).*final address"),
        (302, "not followed"),
        (307, "not followed"),
        (308, "not followed"),
        (401, r"HTTP 401 \(Unauthorized\).*Check the key"),
        (403, "Check the key"),
        (404, r"HTTP 404 \(Not Found\).*Check the path"),
        (418, "HTTP 418"),
        (599, r"HTTP 599 \(tried 1 time\)"),
    ],
)
def test_refusals_end_at_once(server, status, words):
    """Also where failures are to be NaN: no image would fare better."""
    elsewhere = server.url.replace("classify", "elsewhere")
    for on_failure in ("raise", "nan"):
        server.seen.clear()
        server.replies.append(Reply(status=status, headers={"Location": elsewhere}))
        service = server.service(on_failure=on_failure)
        with pytest.raises(ServiceError, match=words):
            service(pictures(2))
        assert len(server.seen) == 1
        assert (service.queries, service.failures) == (0, 1)


def test_a_certificate_that_is_not_trusted_ends_at_once(server, monkeypatch):
    service = server.service()

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise URLError(ssl.SSLCertVerificationError(1, "self-signed certificate"))

    monkeypatch.setattr(service._opener, "open", refuse)
    with pytest.raises(ServiceError, match=r"certificate is not trusted \(tried 1 time\).*SSL_CERT_FILE"):
        service(pictures())


def test_one_image_may_fail_alone(server):
    bad = [Reply(status=422), Reply(status=413)]
    service = server.service(tries=1, on_failure="nan")
    server.replies += [Reply(), bad[0], Reply(status=500), Reply(b"{"), Reply()]
    with pytest.warns(UserWarning, match="HTTP 422") as caught:
        assert service(pictures(5)) == [PAIRS, None, None, None, PAIRS]
    assert len(caught) == 1
    assert (service.queries, service.failures) == (3, 2)
    server.replies.append(bad[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it has been said once
        assert service(pictures(1)) == [None]


# -- waiting ----------------------------------------------------------------------------------------------------------


def test_waits_double_up_to_a_minute(server):
    service = server.service(backoff=10, tries=6)
    clock = Time(service)
    server.replies += [Reply(status=500)] * 5
    service(pictures())
    assert clock.slept == [10, 20, 40, 60, 60]


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        ("7", 7, 7),
        ("2.5", 2.5, 2.5),
        ("0", 1, 1),
        ("3600", 60, 60),
        ("9" * 5000, 1, 1),
        ("-5", 1, 1),
        ("soon", 1, 1),
        (40, 20, 41),  # as a date
        (-40, 1, 1),
        ("Wed, 99 Foo 2099 99:99:99 GMT", 1, 1),
    ],
    ids=lambda value: str(value)[:12],
)
@pytest.mark.parametrize("status", [429, 503])
def test_retry_after(server, status, header, least, most):
    service = server.service(backoff=1)
    clock = Time(service)
    text = header if isinstance(header, str) else formatdate(time.time() + header, usegmt=True)
    server.replies.append(Reply(status=status, headers={"Retry-After": text}))
    assert service(pictures()) == [PAIRS]
    (slept,) = clock.slept
    assert least <= slept <= most


def test_a_long_wait_is_told(server):
    server.replies.append(Reply(status=429, headers={"Retry-After": "3600"}))
    with pytest.raises(ServiceError, match=r"429 \(Too Many Requests\), asks to wait 3600 s .*min_interval"):
        server.service(tries=1)(pictures())


def test_requests_keep_their_distance(server):
    service = server.service(min_interval=2, backoff=0.5)
    clock = Time(service)
    service(pictures(3))
    assert clock.slept == [2, 2]
    clock.now += 1.5
    server.replies.append(Reply(status=500))
    service(pictures())  # 1.5 s of its own have passed; of the 2 s before the second try 0.5 are the back-off
    assert clock.slept[2:] == [0.5, 0.5, 1.5]


# -- the budget -------------------------------------------------------------------------------------------------------


def test_the_budget_is_never_exceeded(server):
    service = server.service(max_queries=3)
    service(pictures(2))
    with pytest.raises(QueryBudgetExceeded, match=r"2 more queries would go past max_queries=3, of which 2 are used"):
        service(pictures(2))
    assert len(server.seen) == 2
    service(pictures(1))
    with pytest.raises(QueryBudgetExceeded):
        service(pictures(1))
    assert service.queries == len(server.seen) == 3


def test_failures_take_nothing_from_the_budget(server):
    server.replies += [Reply(status=500)] * 4
    service = server.service(max_queries=1)
    assert service(pictures()) == [PAIRS]


def test_asking_again_leaves_room_for_the_rest_of_the_call(server):
    service = server.service(max_queries=4, on_failure="nan", tries=9)
    server.replies += [Reply(b"")] * 2
    with pytest.warns(UserWarning, match=r"tried 2 times"):
        assert service(pictures(3)) == [None, PAIRS, PAIRS]
    assert service.queries == len(server.seen) == 4


def test_an_attack_counts_what_the_service_counts(server, tmp_path):
    """The third image is refused, the second lost at once; the first is never lost, and costs all that it may."""
    server.replies += [Reply(), saying({"sky": 0.9}), Reply(status=422)]
    service = server.service(on_failure="nan")
    projection = LowFrequencyProjection(low_frequency_indices(8, 3, 4, 2, num=20), 8)
    attack = PPBAAttack(projection, norm="linf", eps=0.1, max_queries=6, loss_fn=label_score_loss)
    images, labels = torch.rand(3, 3, 8, 8), [{"cat", "dog"}, {"cat"}, {"cat"}]
    with Ledger(tmp_path / "ledger.jsonl") as ledger, pytest.warns(UserWarning, match="HTTP 422"):
        result = attack(service, images, labels, ledger=ledger)
    assert result.success.tolist() == [False, True, False]
    assert result.failed.tolist() == [False, False, True]
    assert result.queries[:2].tolist() == [6, 1]
    assert service.queries == 7
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        again = attack(service, images[:2], labels[:2], ledger=ledger)
    assert again.queries.tolist() == [6, 1]
    assert service.queries == 7  # all of it is in the ledger


# -- the key ----------------------------------------------------------------------------------------------------------

ECHO = f"your key is {KEY}".encode()
LEAKY = {
    "no JSON": Reply(ECHO),
    "other JSON": Reply(json.dumps({"error": ECHO.decode()}).encode()),
    "as a score": Reply(json.dumps([["cat", KEY]]).encode()),
    "refused": Reply(ECHO, 401, reason=ECHO.decode()),
    "redirected": Reply(ECHO, 302, headers={"Location": f"http://127.0.0.1:1/{KEY}"}),
    "redirected to a file": Reply(ECHO, 302, headers={"Location": f"file:///{KEY}"}),
    "throttled": Reply(ECHO, 429, headers={"Retry-After": KEY}, reason=ECHO.decode()),
    "cut off": Reply(ECHO, length=1000),
    "hangs": Reply(wait=30),
}


@pytest.mark.parametrize("on_failure", ["raise", "nan"])
@pytest.mark.parametrize("reply", LEAKY.values(), ids=LEAKY)
def test_the_key_is_told_to_nobody(server, reply, on_failure, caplog, capfd):
    """Neither by this code nor by a text of the server's, of a library's or of an exception behind the exception."""
    caplog.set_level("DEBUG")
    host = server.url.removeprefix("http://")
    parse = lambda answer: [(label, float(score)) for label, score in answer]  # noqa: E731 - its errors quote the answer
    service = HTTPLabelService(
        f"http://user-{KEY}:pass-{KEY}@{host}?key={KEY}#{KEY}",
        parse=parse,
        headers={"X-Api-Key": KEY},
        timeout=0.1,
        tries=1,
        on_failure=on_failure,
    )
    server.replies.append(copy.copy(reply))
    said, behind = [repr(service), str(service), service.url], None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            assert service(pictures()) == [None]
        except ServiceError as error:
            behind = error.__context__
            said += [str(error), repr(error), *traceback.format_exception(error)]
    said += [str(warning.message) for warning in caught]
    assert len(said) > 3  # something was said about the failure
    assert behind is None
    out = " ".join([*said, *capfd.readouterr(), caplog.text])
    login = server.seen[0]["headers"]["Authorization"].removeprefix("Basic ")
    assert base64.b64decode(login).decode() == f"user-{KEY}:pass-{KEY}"
    assert KEY not in out
    assert login not in out
    assert server.url in out


@pytest.mark.parametrize("taken", [pickle.dumps, copy.copy, copy.deepcopy])
def test_no_copies(taken):
    service = HTTPLabelService("http://127.0.0.1/", headers={"X-Api-Key": KEY})
    with pytest.raises(TypeError, match="neither pickled nor copied") as caught:
        taken(service)
    assert KEY not in str(caught.value)


# -- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        f"127.0.0.1/{KEY}",
        f"file:///{KEY}",
        f"ftp://{KEY}@host/",
        f"http:///{KEY}",
        f"http://{KEY}@/",
        f"http://me:{KEY}@host:port{KEY}/",
        f"http://[{KEY}/",
        f"http://{KEY}\u2100@host/",
        f"http://host/a b?{KEY}",
        f"http://host/\u00e4?{KEY}",
        f"http://host/\n?{KEY}",
        "",
        None,
    ],
)
def test_bad_addresses_are_not_repeated(url):
    with pytest.raises(ValueError, match=r"^url (must be http or https|holds spaces)") as caught:
        HTTPLabelService(url)
    assert KEY not in "".join(traceback.format_exception(caught.value, limit=0))
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"X-Api-Key": f"{KEY}\n"}, r"headers\['X-Api-Key'\] must be one line"),
        ({"X-Api-Key": f"{KEY}\u20ac"}, "Latin-1"),
        ({"X-Api-Key": KEY.encode()}, "must be one line"),
        ({f"X-Api-Key: {KEY}": ""}, "holds a name"),
        ({"": KEY}, "holds a name"),
    ],
)
def test_bad_headers_are_not_repeated(headers, words):
    with pytest.raises(ValueError, match=words) as caught:
        HTTPLabelService("http://127.0.0.1/", headers=headers)
    assert KEY not in str(caught.value)


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


def test_nothing_is_guessed():
    with pytest.raises(ValueError, match="empty object"):
        default_parse({})
    with pytest.raises(TypeError, match="neither a list"):
        default_parse("cat")
