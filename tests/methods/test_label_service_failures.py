"""HTTPLabelService when the service fails: tries, waits, and a budget that is never exceeded."""

import copy
import ssl
import time
import warnings
from email.utils import formatdate
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.error import URLError

import pytest
import torch

from lit_methods.ppba import Ledger, LowFrequencyProjection, PPBAAttack, label_score_loss, low_frequency_indices
from lit_methods.ppba.service import HTTPLabelService, QueryBudgetExceeded, ServiceError
from tests.methods.label_server import (
    PAIRS,
    Handler,
    Reply,
    Time,
    pictures,
    saying,
)

# -- failures ----------------------------------------------------------------------------------------------------------


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


# -- waiting -----------------------------------------------------------------------------------------------------------


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


# -- the budget --------------------------------------------------------------------------------------------------------


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
