"""A web service as a black box: any JSON endpoint that answers a picture with labels or scores.

Errors, warnings and ``repr`` are made of our own words alone, never of what the server or a library said: a server may
repeat the key in its answer, and so may the text of an exception.
"""

from __future__ import annotations

import base64
import json
import math
import re
import ssl
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse, IncompleteRead, RemoteDisconnected
from typing import Any, Literal, NoReturn
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

import torch
from torch import Tensor

from lit_methods.ppba.formats import ENCODERS, Encoder, Pairs, default_parse, log_scores, pixels

_BUSY = {429, 500, 502, 503, 504}  # may well answer the next time
_THIS_IMAGE = {400, 413, 422}  # may be the fault of one image; every other refusal would meet all of them
_LONGEST_WAIT = 60.0  # seconds between two tries, whatever Retry-After says
_LARGEST_ANSWER = 16 * 2**20  # bytes; ten labels take less than one kB


class ServiceError(RuntimeError):
    """A service that gave no usable answer; its text is one line without the key."""


class QueryBudgetExceeded(RuntimeError):
    """A call that would go past ``max_queries``; nothing of it was sent."""


class HTTPLabelService:
    """A web service as the target of an attack: images in, labels with scores out, every query counted.

    Each image is clipped to [0, 1], rounded to 8 bits, encoded without loss and posted in a request of its own, one at
    a time. Proxies come from the environment, as ever in Python. Redirects are not followed: the key would go along.

    Args:
        url: http or https; a user and password in it are sent as basic authentication.
        encode: ``"png"`` posts a PNG (``image/png``), ``"json"`` posts ``{"image": "<base64 of the PNG>"}``; or a
            function from an (H, W, C) uint8 array to (bytes, content type).
        parse: from the decoded JSON to (label, score) pairs, which are sorted here. Scores that are not finite become
            NaN.
        headers: sent along, such as ``{"Authorization": "Bearer ..."}``; they beat those made here.
        timeout: seconds to wait for the connection, for each part of the answer's head, and for all of its body.
        tries: how often one image is sent at most. It is sent again after a connection that was refused, reset or timed
            out, a body that is cut off, HTTP 429, 500, 502, 503 or 504, and an answer that cannot be read.
        backoff: seconds before the second try, doubled before each further one; longer where ``Retry-After`` says so,
            but never more than a minute.
        min_interval: least seconds between the starts of two requests.
        max_queries: most queries in the life of this object. A call whose images do not all fit sends nothing, and an
            unreadable answer is asked for again only while the rest of the call still fits.
        on_failure: ``"raise"``, or ``"nan"``: an image without usable answer gets ``None`` (a row of NaN with
            ``classes``), and the first one a warning. What would meet every image (a wrong key, path or certificate)
            raises all the same.
        classes: names of the classes in the order of the labels, for attacks that want a matrix of scores.

    Attributes:
        queries: delivered answers, readable or not. A request that timed out is not among them, though the service may
            charge for it.
        failures: requests without an answer: no connection, a body cut off, or an HTTP error.
        url: the address without user, query string and fragment.

    The key (``headers``, the user and query string of ``url``) is in no message and no ``repr``. Pickling and copying
    are refused: the key would go along, and each copy would have a budget of its own.

    Raises:
        ValueError: an argument out of range; a ``url`` or header that cannot be sent.

    Source:
        The cloud attack of PPBA's released code, for any service; that code knows one, and neither retries nor limits.

    Example:
        >>> HTTPLabelService("https://me:secret@api.example.com/classify?key=secret", max_queries=1000)
        HTTPLabelService('https://api.example.com/classify', queries=0, failures=0, max_queries=1000)
    """

    # for attacks: one image at a time, so that each paid answer is in the ledger before the next image is sent;
    # and a success holds for the saved picture too
    max_batch = 1
    eight_bit = True

    def __init__(
        self,
        url: str,
        encode: Literal["png", "json"] | Encoder = "png",
        parse: Callable[[Any], Sequence[tuple[str, float]]] = default_parse,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = 10.0,
        tries: int = 5,
        backoff: float = 0.5,
        min_interval: float = 0.0,
        max_queries: int | None = None,
        on_failure: Literal["raise", "nan"] = "raise",
        classes: Sequence[str] | None = None,
    ) -> None:
        self.url, self._target, login = _split(url)
        self._headers = {**login, **_checked(headers or {})}
        if isinstance(encode, str) and encode not in ENCODERS:
            raise ValueError(f"encode={encode!r} must be 'png', 'json' or a function from an array to (bytes, type)")
        if not callable(parse):
            raise ValueError(f"parse={parse!r} must be a function from the decoded JSON to (label, score) pairs")
        if not 0 < timeout < math.inf:
            raise ValueError(f"timeout={timeout} must be a positive number of seconds")
        if tries < 1:
            raise ValueError(f"tries={tries} must be at least 1: the first try counts")
        if not (0 <= backoff < math.inf and 0 <= min_interval < math.inf):
            raise ValueError(f"backoff={backoff} and min_interval={min_interval} must be seconds, 0 or more")
        if max_queries is not None and max_queries < 1:
            raise ValueError(f"max_queries={max_queries} must be at least 1, or None for no limit")
        if on_failure not in ("raise", "nan"):
            raise ValueError(f"on_failure={on_failure!r} must be 'raise' or 'nan'")
        if classes is not None and (isinstance(classes, str) or not classes or len(set(classes)) < len(classes)):
            raise ValueError(f"classes={classes!r} must be a list of different names, or None")
        self._encode: Encoder = ENCODERS[encode] if isinstance(encode, str) else encode
        self._parse, self.classes = parse, classes
        self.timeout, self.tries, self.backoff, self.min_interval = timeout, tries, backoff, min_interval
        self.max_queries, self.on_failure = max_queries, on_failure
        self.queries = self.failures = 0
        self._opener = build_opener(_NoRedirect)
        self._clock, self._sleep = time.monotonic, time.sleep
        self._earliest = -math.inf  # start of the next request
        self._warned = False

    def __repr__(self) -> str:
        counts = f"queries={self.queries}, failures={self.failures}, max_queries={self.max_queries}"
        return f"{type(self).__name__}({self.url!r}, {counts})"

    def __getstate__(self) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} is neither pickled nor copied: its key would go along, and each copy would have a "
            "budget of its own. Make it in the process that asks."
        )

    def __call__(self, images: Tensor) -> list[Pairs | None] | Tensor:
        """Ask the service about every image.

        Args:
            images: (N, C, H, W) floating point, in [0, 1]; values outside are clipped. C is 1 or 3, unless ``encode``
                is a function.

        Returns:
            Per image its (label, score) pairs, best first, NaN last; an empty list where the service returned no label.
            With ``classes``: (N, classes) float64 on the CPU, the logarithm of each class's score, since the attacks
            want logits. A class that is not returned, or scores less, gets log(1e-12); other labels are ignored.

        Raises:
            ValueError: images of another shape or type, or with NaN or infinity.
            QueryBudgetExceeded: the images do not all fit into ``max_queries``; nothing was sent.
            ServiceError: no usable answer, see ``on_failure``.
        """
        arrays = pixels(images)
        if not self._affords(len(arrays)):
            raise QueryBudgetExceeded(
                f"{self.url}: {len(arrays)} more queries would go past max_queries={self.max_queries}, of which "
                f"{self.queries} are used up. Nothing was sent; raise max_queries, or ask about fewer images."
            )
        answers = [self._ask(*self._encode(array), to_come=len(arrays) - i - 1) for i, array in enumerate(arrays)]
        if self.classes is None:
            return answers
        rows = [log_scores(answer, self.classes) for answer in answers]
        return torch.tensor(rows, dtype=torch.float64).reshape(-1, len(self.classes))

    def _ask(self, body: bytes, content_type: str, to_come: int) -> Pairs | None:
        """One image's answer, in as many tries as it takes; ``to_come`` are the images of the call after this one."""
        tried, pause = 1, self.backoff
        while isinstance(reply := self._post(body, content_type), _Fault):
            affordable = not reply.counted or self._affords(1 + to_come)
            if tried == self.tries or not reply.again or not affordable:
                self._give_up(reply, tried)
                return None
            self._sleep(min(max(pause, reply.wait), _LONGEST_WAIT))
            tried, pause = tried + 1, 2 * pause
        return reply

    def _give_up(self, fault: _Fault, tried: int) -> None:
        text = f"{self.url}: {fault.what} (tried {tried} time{'s' * (tried > 1)}). {fault.cure}"
        if self.on_failure == "raise" or fault.meets_all:
            raise ServiceError(text)
        if not self._warned:
            self._warned = True
            warnings.warn(f"{text} This image gets no answer; others like it are not reported.", stacklevel=2)

    def _affords(self, count: int) -> bool:
        return self.max_queries is None or self.queries + count <= self.max_queries

    def _post(self, body: bytes, content_type: str) -> Pairs | _Fault:
        """One request. Every exception ends here: what is raised later carries none of their texts."""
        self._sleep(max(0.0, self._earliest - self._clock()))
        self._earliest = self._clock() + self.min_interval
        headers = {"Content-Type": content_type, "Accept": "application/json", **self._headers}
        request = Request(self._target, body, headers, method="POST")
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                answer = self._body(response)
        except HTTPError as error:
            self.failures += 1
            error.close()
            return _refusal(error.code, error.headers.get("Retry-After"))
        except (OSError, HTTPException) as error:
            self.failures += 1
            return self._no_answer(error)
        self.queries += 1
        return self._read(answer)

    def _body(self, response: HTTPResponse) -> bytes:
        """All of the answer, in ``timeout`` seconds: a socket's own limit begins anew with every byte."""
        expected, deadline = response.length, self._clock() + self.timeout
        body = bytearray()
        while part := response.read1(2**16):
            body += part
            if self._clock() > deadline:
                raise TimeoutError
            if len(body) > _LARGEST_ANSWER:
                return bytes(body)  # whatever it is, these are no labels
        if expected is not None and len(body) < expected:
            raise IncompleteRead(b"")  # read1 does not say so
        return bytes(body)

    def _no_answer(self, error: Exception) -> _Fault:
        reason = error.reason if isinstance(error, URLError) else error  # wraps what happens before the answer begins
        if isinstance(reason, ssl.SSLCertVerificationError):
            cure = "Let SSL_CERT_FILE name the authority's certificate, or correct the host in url."
            return _Fault("its certificate is not trusted", cure, again=False, meets_all=True)
        what = type(error).__name__
        if isinstance(reason, IncompleteRead):
            what = "the answer was cut off"
        elif isinstance(reason, RemoteDisconnected):
            what = "the connection was closed without an answer"
        elif isinstance(reason, TimeoutError):
            what = f"no answer within timeout={self.timeout:g} s"
        elif isinstance(reason, OSError) and reason.errno is not None and reason.strerror:
            what = reason.strerror  # of the operating system: "Connection refused"
        return _Fault(what, "See that it is up and the host in url is right; or raise tries, backoff or timeout.")

    def _read(self, body: bytes) -> Pairs | _Fault:
        cure = "Give parse=, a function from the decoded JSON to (label, score) pairs."
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            return _Fault(f"answers {len(body)} bytes that are no JSON", "See that url is the endpoint.", counted=True)
        try:
            scores = [(str(label), float(score)) for label, score in self._parse(answer)]
        except Exception as error:  # whatever a user's parse meets
            size = f" of {len(answer)}" if isinstance(answer, dict | list) else ""
            what = f"{type(error).__name__} in parse, which was given a {type(answer).__name__}{size}"
            return _Fault(what, cure, counted=True)
        pairs = [(label, score if math.isfinite(score) else math.nan) for label, score in scores]
        return sorted(pairs, key=lambda pair: math.inf if math.isnan(pair[1]) else -pair[1])


@dataclass(frozen=True)
class _Fault:
    """Why a request gave no pairs, in our own words."""

    what: str
    cure: str
    again: bool = True
    wait: float = 0.0  # seconds that the service asked for
    counted: bool = False  # it is a query
    meets_all: bool = False  # other images would fare no better


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Leave it as an HTTP error."""


def _refusal(code: int, retry_after: str | None) -> _Fault:
    """An HTTP status that is no success."""
    known = {status.value: f" ({status.phrase})" for status in HTTPStatus}  # our words, not the server's
    what = f"HTTP {code}{known.get(code, '')}"
    if code in _BUSY:
        wait = _seconds(retry_after)
        asked = f", asks to wait {wait:.0f} s" if wait else ""
        cure = "Raise min_interval or tries." if code == 429 else "See that it is up, or raise tries or backoff."
        return _Fault(what + asked, cure, wait=wait)
    if 300 <= code < 400:
        cure = "Redirects are not followed, or the key would go along: give the final address as url."
    elif code in (401, 403):
        cure = "Check the key in headers or url."
    elif code in (404, 405, 410):
        cure = "Check the path of url."
    else:
        cure = "Check encode, headers and the size of the images."
    return _Fault(what, cure, again=False, meets_all=code not in _THIS_IMAGE)


def _seconds(retry_after: str | None) -> float:
    """``Retry-After``, in seconds or as a date; 0 where it says nothing."""
    text = (retry_after or "").strip()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]*)?", text):
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def _split(url: str) -> tuple[str, str, dict[str, str]]:
    """The address to show, the address to send to, and the header of its user; no error repeats any of it."""
    host = port = None
    try:
        parts = urlsplit(str(url))
        if parts.scheme in ("http", "https"):
            host, port = parts.hostname, parts.port
    except ValueError:
        pass  # its text holds parts of the address
    if not host:
        raise ValueError("url must be http or https and name a host, such as https://api.example.com/classify")
    if re.search(r"[^!-~]", url):
        raise ValueError("url holds spaces or characters outside ASCII: write them as %20 and the like")
    netloc = (f"[{host}]" if ":" in host else host) + (f":{port}" if port is not None else "")
    shown = urlunsplit((parts.scheme, netloc, parts.path, "", ""))
    target = urlunsplit((parts.scheme, netloc, parts.path, parts.query, ""))
    if parts.username is None:
        return shown, target, {}
    login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return shown, target, {"Authorization": "Basic " + base64.b64encode(login.encode()).decode()}


def _checked(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers that http.client takes as they are; its own errors would repeat the value."""
    for name, value in headers.items():
        if not isinstance(name, str) or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
            raise ValueError("headers holds a name that is no HTTP header; names are such as 'X-Api-Key'")
        if not isinstance(value, str) or not re.fullmatch(r"[\t -~\xa0-\xff]*", value):
            raise ValueError(f"headers[{name!r}] must be one line of Latin-1 text; does it end in a line break?")
    return dict(headers)
