"""What an answer to the client means, and whether it is of the key-value service at all.

Knows the HTTP API's answers and what httpx raises; sends nothing. Whatever another server says
ends as a `ServiceError` in one sentence.
"""

from __future__ import annotations

import os
import socket
import ssl
from typing import Any, Final, TypeGuard, TypeVar, cast

import httpx

from rafthttp import Outcome, RaftHttpError
from rafthttp.kv.commands import KeyInfo

# Another node, or the same one later, may do better; a proxy answers 502 to 504 for a dead node.
_TRY_AGAIN: Final = frozenset({500, 502, 503, 504})
# Of a proxy in front of the service as well as of the service itself.
_PLAIN: Final = _TRY_AGAIN | {400, 401, 403, 410, 413, 422, 429}
NO_SESSIONS: Final = 501
_STRANGE: Final = "this is no rafthttp key-value service"
_TEXTS: Final = ("id", "address", "state")
_NUMBERS: Final = ("term", "commit_index", "applied_index", "last_index")

# What OpenSSL, by its version, says of bytes that are no TLS.
_NO_TLS: Final = frozenset(
    {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"}
)
_E = TypeVar("_E", bound=BaseException)


class ServiceError(RaftHttpError):
    """The service refused, or nobody answered in time.

    Attributes:
        status: HTTP status of the last answer, or None when there was none.
        outcome: whether the request may have taken effect.
    """

    def __init__(
        self, text: str, *, status: int | None = None, outcome: Outcome = Outcome.DEFINITE
    ) -> None:
        super().__init__(text)
        self.status = status
        self.outcome = outcome


class IdRefusedError(ServiceError):
    """The service does not know the session of a request, or runs without any (501)."""


def is_done(response: httpx.Response) -> bool:
    """Whether the service did what was asked.

    A write is 204, a session is 201, a read is 200 or no such key.
    """
    if response.request.method == "POST":
        return response.status_code == 201
    if response.request.method != "GET":
        return response.status_code == 204
    return response.status_code == 200 or _is_no_such_key(response)


def is_worth_another_try(response: httpx.Response) -> bool:
    """Whether another node, or another time, may give another answer."""
    return response.status_code in _TRY_AGAIN


def error_text(response: httpx.Response, url: str) -> str:
    """What the service says is wrong; or that this is another one."""
    status = response.status_code
    answer = _json(response)
    error = answer.get("error") if _is_object(answer) else None
    is_key_missing = status == 404  # only a read is answered so, and that is no error
    if isinstance(error, str) and not is_key_missing:
        return error
    return f"{url} answered {status}" + ("" if status in _PLAIN else f": {_STRANGE}")


def refusal(response: httpx.Response, url: str) -> ServiceError:
    """An answer that is final."""
    unknown = response.status_code in _TRY_AGAIN and response.status_code != 503
    is_of_id = response.status_code in {410, NO_SESSIONS} and _is_ours(response)
    kind = IdRefusedError if is_of_id else ServiceError
    return kind(
        error_text(response, url),
        status=response.status_code,
        outcome=Outcome.UNKNOWN if unknown else Outcome.DEFINITE,
    )


def page(response: httpx.Response) -> tuple[list[KeyInfo], str | None]:
    """One page of keys, and what the next one begins behind.

    Raises:
        ServiceError: it is none.
    """
    answer = _json(response)
    if not _is_object(answer) or not isinstance(answer.get("next", 0), str | None):
        raise _strange(response)
    keys: list[KeyInfo] = []
    for item in _objects(answer.get("keys"), response):
        key, size = item.get("key"), item.get("size")
        if not isinstance(key, str) or not isinstance(size, int):
            raise _strange(response)
        keys.append(KeyInfo(key, size))
    return keys, answer["next"]


def status(response: httpx.Response) -> dict[str, Any]:
    """A node's status, with at least the fields of the API's description.

    Raises:
        ServiceError: it is none.
    """
    answer = _json(response)
    if not _is_object(answer):
        raise _strange(response)
    leader = answer.get("leader", 0)
    servers = _objects(answer.get("servers"), response)
    fits = (
        all(isinstance(answer.get(name), str) for name in _TEXTS)
        and all(isinstance(answer.get(name), int) for name in _NUMBERS)
        and (leader is None or _has_texts(leader, "id", "address"))
        and all(_has_texts(server, "id", "address", "suffrage") for server in servers)
    )
    if not fits:
        raise _strange(response)
    return answer


def left(response: httpx.Response) -> dict[str, Any]:
    """What a node says that has left.

    Raises:
        ServiceError: it is no such answer.
    """
    answer = _json(response)
    if not _has_texts(answer, "id"):
        raise _strange(response)
    return answer


def session(response: httpx.Response) -> bytes:
    """The id of a session that was opened.

    Raises:
        ServiceError: it is no such answer.
    """
    answer = _json(response)
    if not _has_texts(answer, "session"):
        raise _strange(response)
    try:
        return bytes.fromhex(answer["session"])
    except ValueError:
        raise _strange(response) from None


def transferred(response: httpx.Response) -> dict[str, Any]:
    """Who leads after a transfer.

    Raises:
        ServiceError: it is no such answer.
    """
    answer = _json(response)
    leader = answer.get("leader") if _is_object(answer) else None
    if not _has_texts(leader, "id", "address"):
        raise _strange(response)
    return leader


def outcome_of(error: Exception) -> Outcome:
    """A connection that never came about carried nothing."""
    never_sent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
    return Outcome.DEFINITE if never_sent else Outcome.UNKNOWN


def sentence(error: Exception) -> str:
    """Why there was no answer."""
    tls = _cause(error, ssl.SSLError)
    if isinstance(tls, ssl.SSLCertVerificationError):
        return f"its TLS certificate is not accepted: {tls.verify_message.rstrip('.')}"
    if tls is not None and not isinstance(tls, ssl.SSLWantReadError):  # that one only waits
        reason = (tls.reason or str(tls)).replace("_", " ").lower()
        hint = "; does it speak http?" if tls.reason in _NO_TLS else ""
        return f"TLS failed: {reason}{hint}"
    if isinstance(error, httpx.ConnectTimeout):
        return "cannot connect: no answer in time"
    if isinstance(error, httpx.ConnectError):
        return f"cannot connect: {_reason(error)}"
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        return "no answer in time"
    if isinstance(error, httpx.ReadError | httpx.RemoteProtocolError) and _is_https(error):
        # TLS 1.3: a client learns that its certificate was refused only when it reads, or never.
        return "it closed the connection before its answer; it may ask for a client certificate"
    return str(error) or type(error).__name__


# -- inside


def _reason(error: httpx.ConnectError) -> str:
    """What the operating system said; httpx, httpcore and anyio each wrap it."""
    system = _cause(error, OSError)
    if isinstance(system, socket.gaierror):
        return f"{error.request.url.host}: {(system.strerror or str(system)).lower()}"
    if system is not None and system.errno:
        return os.strerror(system.errno).lower()  # asyncio's own text repeats the address
    return (str(error) or type(error).__name__).lower()


def _cause(error: BaseException | None, kind: type[_E]) -> _E | None:
    """The first of a kind that an error comes from, and that says what it is."""
    for _ in range(8):
        if isinstance(error, kind) and getattr(error, "errno", 0) is not None:
            return error
        if error is None:
            return None
        inner = cast("tuple[BaseException, ...]", getattr(error, "exceptions", ()))  # of a group
        error = inner[0] if inner else error.__cause__ or error.__context__
    return None


def _is_https(error: httpx.RequestError) -> bool:
    return error.request.url.scheme == "https"


def _is_no_such_key(response: httpx.Response) -> bool:
    """A 404 of the service; a proxy's or another application's says nothing about a key."""
    return response.status_code == 404 and _is_ours(response)


def _is_ours(response: httpx.Response) -> bool:
    answer = _json(response)
    return _is_object(answer) and "outcome" in answer


def _json(response: httpx.Response) -> object:
    try:
        return response.json()
    except (ValueError, RecursionError):
        return None


def _is_object(answer: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(answer, dict)  # JSON has no other keys than texts


def _has_texts(answer: object, *names: str) -> TypeGuard[dict[str, Any]]:
    return _is_object(answer) and all(isinstance(answer.get(name), str) for name in names)


def _objects(answer: object, response: httpx.Response) -> list[dict[str, Any]]:
    items = cast("list[object]", answer) if isinstance(answer, list) else [None]
    objects = [item for item in items if _is_object(item)]
    if len(objects) != len(items):
        raise _strange(response)
    return objects


def _strange(response: httpx.Response) -> ServiceError:
    url = response.request.url
    root = str(url.copy_with(query=None)).removesuffix(url.path)
    return ServiceError(
        f"{root} answered {response.status_code}: {_STRANGE}", status=response.status_code
    )
