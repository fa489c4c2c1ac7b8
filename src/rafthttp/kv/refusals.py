"""What an error of the service means in HTTP.

Knows errors and status codes; nothing of requests.
"""

from __future__ import annotations

from typing import Final

from starlette.responses import JSONResponse

from rafthttp import (
    EntryTooLargeError,
    Leader,
    MembershipError,
    Outcome,
    RaftError,
    RemoteApplyError,
    RequestReusedError,
    SessionExpiredError,
)
from rafthttp.kv.access import error_response
from rafthttp.kv.commands import CommandError
from rafthttp.kv.idempotency import IdempotencyKeyError

_RETRY_AFTER: Final = {"Retry-After": "1"}


class BadRequestError(ValueError):
    """What the client sent cannot be understood; the text says why."""


class NotSupportedError(ValueError):
    """The client asks for what this service was started without; the text says what."""


def refusal(error: Exception, known: Leader | None) -> JSONResponse | None:
    """The answer to a request that ended in `error`; None where it is a defect.

    Args:
        error: what was raised.
        known: who leads, where the error does not tell.
    """
    leader = None if known is None else known._asdict()
    text = str(error)
    if isinstance(error, BadRequestError | CommandError | IdempotencyKeyError):
        return error_response(400, text, leader=leader)
    if isinstance(error, NotSupportedError):
        return error_response(501, text, leader=leader)
    if isinstance(error, EntryTooLargeError):
        return error_response(413, text, leader=leader)
    if isinstance(error, RaftError):
        leader = leader if error.leader is None else error.leader._asdict()
        if error.outcome is Outcome.UNKNOWN:
            return error_response(504, text, outcome="unknown", leader=leader)
        if isinstance(error, RequestReusedError | SessionExpiredError):
            status = 422 if isinstance(error, RequestReusedError) else 410
            return error_response(status, text, leader=leader)
        return error_response(503, text, leader=leader, headers=_RETRY_AFTER)
    if isinstance(error, MembershipError):
        refused = error.status in {400, 401, 403}
        status = error.status if refused and error.status else 503
        return error_response(status, text, leader=leader, headers=_RETRY_AFTER)
    if isinstance(error, RemoteApplyError):
        return error_response(500, text, leader=leader)
    return None
