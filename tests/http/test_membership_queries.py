"""Join and leave with queries of every kind: a well-formed one is made as it says, others never.

What is well-formed is said in `rafthttp.testing.fuzzing.endpoint` a second time, and not with the
grammar that is tested.
"""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote_from_bytes

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rafthttp.testing.fuzzing.endpoint import SERVERS, Endpoint, is_address, is_id

_NASTY = st.sampled_from([b"&", b"=", b"#", b"%", b"\r\n", b"\0", b" ", b"+", b"\xff", b"\xc3\xa9"])
_IDS = st.one_of(
    st.from_regex(rb"[A-Za-z0-9._~:@+/=,\[\]-]{1,8}", fullmatch=True),
    st.builds(bytes.__add__, st.just(b"n1"), _NASTY),
    st.sampled_from([b"", b"x" * 255, b"x" * 256]),
    st.binary(max_size=6),
)
_ADDRESSES = st.one_of(
    st.sampled_from([b"10.0.0.2:8000", b"h:1", b"[::1]:80", b"a.b-c:65535"]),
    st.sampled_from([b"h:0", b"h:65536", b"h", b":1", b"[::1:80", b"[::g]:1", b"h:1\n", b"h:01"]),
    st.builds(bytes.__add__, st.just(b"h:1"), _NASTY),
    st.binary(max_size=6),
)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint()
    yield made
    made.close()


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(SERVERS),
    st.sampled_from(["POST", "DELETE"]),
    _IDS,
    st.one_of(st.none(), _ADDRESSES),
    st.booleans(),
)
def test_a_change_is_what_its_query_says_or_none(
    endpoint: Endpoint,
    server: str,
    method: str,
    server_id: bytes,
    address: bytes | None,
    twice: bool,
) -> None:
    fields = [("id", server_id), *([] if address is None else [("address", address)])]
    fields += [("id", server_id)] * twice
    query = "&".join(f"{name}={quote_from_bytes(value, safe='')}" for name, value in fields)
    request = f"{method} /raft?{query} HTTP/1.1\r\nHost: h\r\n\r\n".encode()
    outcome = endpoint.run(server, [request])
    (status,) = outcome.statuses
    good = is_id(server_id) and not twice and (address is None or is_address(address))
    if method == "POST" and address is None:
        good = False
    assert status == (200 if good else 400)
    if not good:
        assert not outcome.changes
        return
    kind = "join" if method == "POST" else "leave" if address is None else "release"
    assert outcome.changes == ((kind, server_id.decode(), (address or b"").decode()),)


@settings(deadline=None, max_examples=100)
@given(
    st.sampled_from(SERVERS),
    st.sampled_from(["POST", "DELETE"]),
    st.text("id=addres&%2B6n1:[]\\+;# \0é\r\n", max_size=30),
)
def test_no_garbage_changes_anything(
    endpoint: Endpoint, server: str, method: str, query: str
) -> None:
    request = f"{method} /raft?{query} HTTP/1.1\r\nHost: h\r\n\r\n".encode()
    outcome = endpoint.run(server, [request])
    assert all(status < 500 for status in outcome.statuses)
    for _, name, address in outcome.changes:
        assert is_id(name.encode())
        assert not address or is_address(address.encode())
