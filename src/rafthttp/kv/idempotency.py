"""The header `Idempotency-Key`: under which id the service remembers a request.

Knows the header's two forms; nothing of who remembers. `"a-key"` is a key of the client's choice
(draft-ietf-httpapi-idempotency-key-header: a structured field's string; a bare one is taken too).
`"SESSION";seq=7;low=3` is a numbered request of a session that `POST /sessions` has opened.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from rafthttp import SessionRequest

HEADER: Final = "Idempotency-Key"

KEY_SIZE_MAX: Final = 255
"""Characters; a UUID has 36."""

_QUOTED: Final = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"((?:; *[a-z][a-z0-9_.*-]*=\d{1,15})*)')
_BARE: Final = re.compile(r"[!#-+\--:<-~]+")
_SESSION: Final = re.compile(r"[0-9a-f]{32}")
_ESCAPE: Final = re.compile(r"\\(.)")


class IdempotencyKeyError(ValueError):
    """The header cannot be understood; the text says why."""


def parse(values: Sequence[str]) -> str | SessionRequest | None:
    """What a request's header fields say; None where there is none.

    Raises:
        IdempotencyKeyError: it stands twice, is empty, too long, or not of either form.
    """
    if not values:
        return None
    if len(values) > 1:
        raise IdempotencyKeyError(f"{HEADER} stands more than once")
    text = values[0].strip(" \t")
    if _BARE.fullmatch(text):
        key, parameters = text, ""
    elif found := _QUOTED.fullmatch(text):
        key, parameters = _ESCAPE.sub(r"\1", found[1]), found[2]
    else:
        raise IdempotencyKeyError(f'{HEADER} is a quoted string: {HEADER}: "8e03978e-40d5"')
    if not 0 < len(key) <= KEY_SIZE_MAX:
        raise IdempotencyKeyError(f"{HEADER} has from 1 to {KEY_SIZE_MAX} characters")
    numbers = dict(part.strip().split("=") for part in parameters.split(";")[1:])
    if not {"seq", "low"} & numbers.keys():
        return key
    if not numbers.keys() >= {"seq", "low"} or not _SESSION.fullmatch(key):
        raise IdempotencyKeyError(f"a numbered {HEADER} is a session's id with seq and low")
    request = SessionRequest(bytes.fromhex(key), int(numbers["seq"]), int(numbers["low"]))
    if request.lowest > request.sequence:
        raise IdempotencyKeyError(f"{HEADER}: low is above seq")
    return request


def render(request_id: str | SessionRequest) -> str:
    """The header's value."""
    if isinstance(request_id, SessionRequest):
        session, sequence, lowest = request_id
        return f'"{session.hex()}";seq={sequence};low={lowest}'
    escaped = request_id.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
