"""What an id, an address, a path and a cluster id may look like.

Knows no I/O. A name that passes here can stand in a URL's host, a header and a log line unescaped:
no control character, no space, no `&`, no quote.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from rafthttp.raft.errors import ConfigError
from rafthttp.raft.types import LogPosition, ServerAddress, ServerID

ID_LENGTH_MAX: Final = 255
"""Characters of an id. A UUID takes 36; a DNS name, often used as an id, takes at most 253."""

ADDRESS_LENGTH_MAX: Final = 261
"""Characters of an address: a DNS name of 253, two brackets, `:`, and a port of 5."""

CLUSTER_ID_LENGTH_MAX: Final = 64
"""Characters of a cluster id. A UUID takes 36."""

# `fullmatch`, never `match` with `$`: `$` also matches before a trailing newline.
_ID: Final = re.compile(r"[A-Za-z0-9._~:@+/=,\[\]-]+")
_LABEL: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_PORT: Final = re.compile(r"[1-9][0-9]{0,4}")
_CLUSTER_ID: Final = re.compile(r"[A-Za-z0-9._-]+")
_PATH: Final = re.compile(r"/[A-Za-z0-9._~!$'()*+,;=:@/%-]*")
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110 §5.6.2
_HEADER_VALUE: Final = re.compile(r"[\x21-\x7e](?:[\t\x20-\x7e]*[\x21-\x7e])?")
_POSITION: Final = re.compile(r"([1-9][0-9]{0,18})/([1-9][0-9]{0,18})")
_OPERATION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def parse_id(text: str) -> ServerID:
    """Check a server id.

    Raises:
        ValueError: it is empty, too long, or has a character that is not allowed.
    """
    if not text:
        raise ValueError("no server ID provided")
    if len(text) > ID_LENGTH_MAX:
        raise ValueError(f"the server ID has {len(text)} characters, more than {ID_LENGTH_MAX}")
    if _ID.fullmatch(text) is None:
        raise ValueError(
            f"the server ID {text!r} has a character that is not allowed: only letters, digits and"
            " . _ ~ : @ + / = , [ ] - are"
        )
    return ServerID(text)


def split_address(text: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT` or `[IPV6]:PORT`; the host comes without brackets.

    Raises:
        ValueError: it is not such an address.
    """
    if not text:
        raise ValueError("no server address provided")
    if len(text) > ADDRESS_LENGTH_MAX:
        raise ValueError(
            f"the server address has {len(text)} characters, more than {ADDRESS_LENGTH_MAX}"
        )
    host, colon, port = text.rpartition(":")
    if not colon or _PORT.fullmatch(port) is None or int(port) > 65535:
        raise ValueError("the server address is not HOST:PORT with a port from 1 to 65535")
    if host.startswith("[") and host.endswith("]"):
        try:
            ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            raise ValueError("the server address has no valid IPv6 address in brackets") from None
        if "%" in host:
            raise ValueError("the server address has a zone, which no other host understands")
        return host[1:-1], int(port)
    if any(_LABEL.fullmatch(label) is None for label in host.removesuffix(".").split(".")):
        raise ValueError("the host of the server address is no name and no IP address")
    return host, int(port)


def parse_address(text: str) -> ServerAddress:
    """Check a server address; it is kept byte for byte.

    Raises:
        ValueError: it is not `HOST:PORT` or `[IPV6]:PORT`.
    """
    split_address(text)
    return ServerAddress(text)


def parse_cluster_id(text: str) -> str:
    """Check a cluster id.

    Raises:
        ValueError: it is empty, too long, or has a character that is not allowed.
    """
    if not text or len(text) > CLUSTER_ID_LENGTH_MAX or _CLUSTER_ID.fullmatch(text) is None:
        raise ValueError(
            f"a cluster id has 1 to {CLUSTER_ID_LENGTH_MAX} letters, digits, '.', '_' or '-'"
        )
    return text


def parse_operation(text: str) -> str:
    """Check the name of a forwarded operation.

    Raises:
        ValueError: it is empty, too long, or has a character that is not allowed.
    """
    if _OPERATION.fullmatch(text) is None:
        raise ValueError("the operation has 1 to 64 letters, digits, '.', '_' or '-'")
    return text


def parse_position(text: str) -> LogPosition:
    """Check a position in a log, `TERM/INDEX`.

    Raises:
        ValueError: it is not that, or a number is 0 or out of range.
    """
    match = _POSITION.fullmatch(text)
    if match is None or max(int(number) for number in match.groups()) >= 1 << 62:
        raise ValueError("a position in a log is TERM/INDEX, two numbers above 0 and below 2**62")
    return LogPosition(int(match[1]), int(match[2]))


def is_header(name: str, value: str) -> bool:
    """Whether a request may carry this header."""
    return bool(_HEADER_NAME.fullmatch(name) and _HEADER_VALUE.fullmatch(value))


def parse_path(text: str) -> str:
    """Check an endpoint path, percent-encoded as it goes on the wire.

    Raises:
        ConfigError: it does not begin with a slash, or needs escaping.
    """
    if _PATH.fullmatch(text) is None:
        raise ConfigError(f"path {text!r} must begin with '/' and hold only URL path characters")
    return text
