"""The key of a service is in no message, no log and no copy."""

import base64
import copy
import json
import pickle
import traceback
import warnings

import pytest

from lit_methods.ppba.service import HTTPLabelService, ServiceError
from tests.methods.label_server import (
    KEY,
    Reply,
    pictures,
)

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
