"""The joiner's side, against members that are scripted, and real ones that redirect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest

from rafthttp.http import membership_client
from rafthttp.http.dial import dial_tcp
from rafthttp.http.handler import Handler
from rafthttp.http.layer import Layer
from rafthttp.http.membership import ChangeKind
from rafthttp.http.membership_client import change_membership
from rafthttp.raft.errors import ConfigError, DifferentLeaderError, MembershipError
from rafthttp.raft.types import Leader, LogPosition, ServerAddress, ServerID
from rafthttp.testing.http import RawConnection, ServerKind, until

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def answer(status: int, body: bytes = b"", *headers: bytes) -> bytes:
    lines = [b"HTTP/1.1 %d X" % status, b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join([*lines, b"", body])


def redirect(location: str, status: int = 308) -> bytes:
    return answer(status, b"moved\n", b"Location: " + location.encode())


class Member:
    """Answers each connection with the next line of its script; the last one again and again."""

    def __init__(self, *script: bytes) -> None:
        self.script = list(script)
        self.heads: list[str] = []
        self.times: list[float] = []
        self.port = 0
        self.open = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        raw = RawConnection(reader, writer)
        try:
            self.heads.append((await raw.head()).decode())
            self.times.append(asyncio.get_running_loop().time())
            line = self.script.pop(0) if len(self.script) > 1 else self.script[0]
            if line:
                raw.send(line)
            await raw.rest()
        except asyncio.IncompleteReadError as error:
            self.heads.extend([error.partial.decode()] if error.partial else [])
        finally:
            self.open -= 1
            writer.close()


@asynccontextmanager
async def members(*many: Member) -> AsyncGenerator[None]:
    servers: list[asyncio.Server] = []
    for member in many:
        server = await asyncio.start_server(member.serve, "127.0.0.1", 0)
        member.port = server.sockets[0].getsockname()[1]
        servers.append(server)
    try:
        yield
    finally:
        for member in many:
            await until(lambda member=member: not member.open)  # type: ignore[misc] # its default
        for server in servers:
            server.close()


async def join(
    *targets: str, timeout: float = 5.0, scheme: str = "http", address: str = "127.0.0.1:9"
) -> str | None:
    return await change_membership(
        ChangeKind.JOIN, "/raft", dial_tcp(), "n9", address, targets, timeout, scheme=scheme
    )


def test_a_join_posts_its_id_and_address_escaped(on_loop: ServerKind) -> None:
    async def main() -> None:
        member = Member(OK)
        async with members(member):
            seen = await change_membership(
                ChangeKind.JOIN, "/raft", dial_tcp(), "a=b+c/d", "[::1]:80", member.address, 5.0
            )
        assert seen is None
        (head,) = member.heads
        assert head.startswith(
            "POST /raft?id=a%3Db%2Bc%2Fd&address=%5B%3A%3A1%5D%3A80 HTTP/1.1\r\n"
        )
        assert f"\r\nHost: {member.address}\r\n" in head
        assert "\r\nContent-Length: 0\r\n" in head

    on_loop.run(main)


def test_a_leave_deletes(on_loop: ServerKind) -> None:
    async def main() -> None:
        member = Member(OK)
        async with members(member):
            layer = Layer("/raft", "127.0.0.1:9", Handler(), dial_tcp())
            assert await layer.leave(ServerID("n2"), member.address, 5.0) is None
        assert member.heads[0].startswith("DELETE /raft?id=n2 HTTP/1.1\r\n")

    on_loop.run(main)


@pytest.mark.parametrize(
    ("headers", "released"), [((b"Raft-Released: 3/17",), LogPosition(3, 17)), ((), None)]
)
def test_a_release_tells_who_made_it_and_from_where_on_to_vote(
    on_loop: ServerKind, headers: tuple[bytes, ...], released: LogPosition | None
) -> None:
    """S62: a member in Go answers a leave, and tells nothing."""

    async def main() -> None:
        leader, follower = Member(answer(200, b"", *headers)), Member(b"")
        async with members(leader, follower):
            follower.script = [redirect(f"http://{leader.address}/raft?anything=else")]
            layer = Layer("/raft", "127.0.0.1:9", Handler(), dial_tcp())
            changed = await layer.release(ServerID("n9"), ServerAddress(follower.address), 5.0)
        assert changed == (leader.address, None, released)
        assert leader.heads[0].startswith("DELETE /raft?id=n9&address=127.0.0.1%3A9 HTTP/1.1\r\n")

    on_loop.run(main)


def test_a_release_that_tells_nonsense_is_none(on_loop: ServerKind) -> None:
    async def main() -> None:
        member = Member(answer(200, b"", b"Raft-Released: 3"))
        async with members(member):
            layer = Layer("/raft", "127.0.0.1:9", Handler(), dial_tcp())
            with pytest.raises(MembershipError, match="TERM/INDEX"):
                await layer.release(ServerID("n9"), ServerAddress(member.address), 5.0)

    on_loop.run(main)


def test_a_redirect_is_followed_with_path_query_and_headers(on_loop: ServerKind) -> None:
    async def headers() -> Mapping[str, str]:
        return {"Authorization": "Bearer t"}

    async def main() -> None:
        leader, follower = Member(OK), Member(b"")
        async with members(leader, follower):
            follower.script = [redirect(f"http://{leader.address}/raft?anything=else")]
            layer = Layer("/raft", "127.0.0.1:9", Handler(), dial_tcp(), headers=headers)
            await layer.join(ServerID("n9"), ServerAddress(follower.address), 5.0)
        request = "POST /raft?id=n9&address=127.0.0.1%3A9 HTTP/1.1\r\n"
        for head in (*leader.heads, *follower.heads):
            assert head.startswith(request)
            assert "\r\nAuthorization: Bearer t\r\n" in head

    on_loop.run(main)


def test_a_redirect_from_behind_a_prefix_leads_below_it_again(on_loop: ServerKind) -> None:
    """A proxy takes `/app1` off: the member knows, and names, only the rest of its path."""

    async def main() -> None:
        leader, follower = Member(OK), Member(b"")
        async with members(leader, follower):
            follower.script = [redirect(f"http://{leader.address}/raft")]
            layer = Layer("/app1/raft", "127.0.0.1:9", Handler(), dial_tcp())
            await layer.join(ServerID("n9"), ServerAddress(follower.address), 5.0)
        assert leader.heads[0].startswith("POST /app1/raft?id=n9&")

    on_loop.run(main)


@pytest.mark.parametrize("status", [307, 308])
def test_a_go_members_http_location_does_not_end_tls(on_loop: ServerKind, status: int) -> None:
    async def main() -> None:
        leader, follower = Member(OK), Member(b"")
        async with members(leader, follower):
            follower.script = [redirect(f"http://{leader.address}/raft", status)]
            # The dial stands for TLS here: it is the only way bytes leave, whatever Location says.
            await join(follower.address, scheme="https")
        assert len(leader.heads) == 1

    on_loop.run(main)


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("https://127.0.0.1:1/raft", "does not speak https"),
        ("ftp://127.0.0.1:1/raft", "does not speak ftp"),
        ("http://127.0.0.1:1/raft/", "another path than /raft"),
        ("/raft/", "redirected to /raft/"),
        ("http://user@127.0.0.1:1/raft", "the host of the server address"),
        ("http://127.0.0.1/raft", "not HOST:PORT"),
        ("http://[::1/raft", "redirected to"),
        ("", "redirected to nowhere"),
    ],
)
def test_a_redirect_elsewhere_is_not_followed(
    on_loop: ServerKind, location: str, said: str
) -> None:
    async def main() -> None:
        member = Member(redirect(location))
        async with members(member):
            with pytest.raises(MembershipError, match=said) as caught:
                await join(member.address)
        assert caught.value.status == 308
        assert len(member.heads) == 1

    on_loop.run(main)


@pytest.mark.parametrize("status", [301, 302, 303, 400, 401, 403, 404, 405, 409, 413, 500])
def test_a_refusal_is_final(on_loop: ServerKind, status: int) -> None:
    async def main() -> None:
        member = Member(answer(status, b"because\r\nof that\n"))
        async with members(member):
            with pytest.raises(MembershipError, match="because of that") as caught:
                await join(member.address)
        assert caught.value.status == status
        assert caught.value.server_id == "n9"
        assert caught.value.address == member.address
        assert len(member.heads) == 1

    on_loop.run(main)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_may_pass_is_tried_again_with_growing_pauses(on_loop: ServerKind, status: int) -> None:
    async def main() -> None:
        member = Member(*[answer(status)] * 4, OK)
        async with members(member):
            await join(member.address)
        pauses = [b - a for a, b in pairwise(member.times)]
        assert len(pauses) == 4
        assert 0.02 < pauses[0] < pauses[3]

    on_loop.run(main)


def test_retry_after_is_a_minimum(on_loop: ServerKind) -> None:
    async def main() -> None:
        member = Member(answer(503, b"", b"Retry-After: 1"), OK)
        async with members(member):
            await join(member.address)
        assert member.times[1] - member.times[0] >= 1.0

    on_loop.run(main)


@pytest.mark.parametrize("value", [b"99999", b"1"])
def test_a_retry_after_beyond_the_deadline_ends_it(on_loop: ServerKind, value: bytes) -> None:
    async def main() -> None:
        member = Member(answer(503, b"no leader is known\n", b"Retry-After: " + value))
        loop = asyncio.get_running_loop()
        started = loop.time()
        async with members(member):
            with pytest.raises(MembershipError, match=r"no leader is known; gave up") as caught:
                await join(member.address, timeout=0.5)
        assert caught.value.status == 503
        assert loop.time() - started < 0.5

    on_loop.run(main)


@pytest.mark.parametrize("value", [b"-1", b"Fri, 31 Dec 1999 23:59:59 GMT", b"\xb2", b"9" * 50])
def test_a_retry_after_that_is_none_of_ours_is_ignored(on_loop: ServerKind, value: bytes) -> None:
    async def main() -> None:
        member = Member(answer(503, b"", b"Retry-After: " + value), OK)
        async with members(member):
            await join(member.address)
        assert member.times[1] - member.times[0] < 1.0

    on_loop.run(main)


def test_members_that_do_not_answer_are_passed_over(
    on_loop: ServerKind, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership_client, "ATTEMPT_SECONDS_MAX", 0.1)

    async def main() -> None:
        hung, broken, fine = Member(b""), Member(b"not http\r\n\r\n"), Member(OK)
        async with members(hung, broken, fine):
            await join(f"127.0.0.1:{free_port}", hung.address, broken.address, fine.address)
        assert len(hung.heads) == len(broken.heads) == len(fine.heads) == 1

    on_loop.run(main)


def test_nobody_answers_until_the_deadline(on_loop: ServerKind, free_port: int) -> None:
    async def main() -> None:
        with pytest.raises(MembershipError, match=r"cannot connect .* gave up after") as caught:
            await join(f"127.0.0.1:{free_port}", timeout=0.3)
        assert caught.value.status is None

    on_loop.run(main)


def test_an_attempt_cut_short_by_the_deadline_does_not_hide_the_reason(
    on_loop: ServerKind,
) -> None:
    async def main() -> None:
        refusing, silent = Member(b"not http\r\n\r\n"), Member(b"")
        async with members(refusing, silent):
            with pytest.raises(MembershipError, match=f"asking {refusing.address}"):
                await join(refusing.address, silent.address, timeout=0.5)
        assert len(silent.heads) == 1

    on_loop.run(main)


def test_a_silent_member_meets_the_deadline(on_loop: ServerKind) -> None:
    async def main() -> None:
        member = Member(b"")
        loop = asyncio.get_running_loop()
        started = loop.time()
        async with members(member):
            with pytest.raises(MembershipError, match="did not answer"):
                await join(member.address, timeout=0.2)
            assert loop.time() - started < 2.0
            await until(lambda: not member.open)  # and its connection is closed

    on_loop.run(main)


def test_a_loop_of_redirects_is_an_election_under_way(
    on_loop: ServerKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        one, two = Member(b""), Member(b"")
        async with members(one, two):
            one.script = [redirect(f"http://{two.address}/raft"), OK]
            two.script = [redirect(f"http://{one.address}/raft")]
            await join(one.address)
            one.script = [redirect(f"http://{one.address}/raft")]
            monkeypatch.setattr(membership_client, "PAUSE_SECONDS", (60.0, 60.0))
            with pytest.raises(MembershipError, match="redirected in a loop"):
                await join(one.address)

    on_loop.run(main)


def test_redirects_in_a_row_are_bounded(
    on_loop: ServerKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership_client, "PAUSE_SECONDS", (60.0, 60.0))

    async def main() -> None:
        many = [Member(b"") for _ in range(12)]
        async with members(*many):
            for member, following in pairwise(many):
                member.script = [redirect(f"http://{following.address}/raft")]
            many[-1].script = [OK]
            with pytest.raises(MembershipError, match="redirected in a loop"):
                await join(many[0].address)
            assert not many[membership_client.REDIRECTS_MAX + 1].heads

    on_loop.run(main)


def test_the_cluster_id_is_adopted(on_loop: ServerKind) -> None:
    async def main() -> None:
        member = Member(answer(200, b"", b"Raft-Cluster-Id: c7"))
        handler = Handler()
        layer = Layer("/raft", "127.0.0.1:9", handler, dial_tcp())
        async with members(member):
            assert await layer.join(ServerID("n9"), member.address, 5.0) == "c7"
            assert "Raft-Cluster-Id" not in member.heads[0]
            assert layer.cluster_id == handler.cluster_id == "c7"
            await layer.join(ServerID("n9"), member.address, 5.0)
            assert "\r\nRaft-Cluster-Id: c7\r\n" in member.heads[1]

    on_loop.run(main)


@pytest.mark.parametrize("shown", [b"a b", b"\xff", b"x" * 65])
def test_a_cluster_id_against_the_grammar_is_an_error(on_loop: ServerKind, shown: bytes) -> None:
    async def main() -> None:
        member = Member(answer(200, b"", b"Raft-Cluster-Id: " + shown))
        async with members(member):
            with pytest.raises(MembershipError, match="cluster id"):
                await join(member.address)

    on_loop.run(main)


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan")])
def test_a_timeout_that_is_none_is_an_error(timeout: float) -> None:
    with pytest.raises(ConfigError, match="timeout"):
        asyncio.run(join("127.0.0.1:1", timeout=timeout))


def test_names_are_checked_before_anybody_is_asked() -> None:
    with pytest.raises(ConfigError, match="no member"):
        asyncio.run(join())
    with pytest.raises(ConfigError, match="server address"):
        asyncio.run(join("nonsense"))
    with pytest.raises(ConfigError, match="server address"):
        asyncio.run(join("127.0.0.1:1", address="a&b"))


def test_a_header_that_cannot_be_sent_is_the_callers_error(on_loop: ServerKind) -> None:
    async def headers() -> Mapping[str, str]:
        return {"X": "a\r\nb"}

    async def main() -> None:
        member = Member(OK)
        async with members(member):
            with pytest.raises(ConfigError, match="header 'X' cannot be sent"):
                await change_membership(
                    ChangeKind.LEAVE,
                    "/raft",
                    dial_tcp(),
                    "n9",
                    "",
                    member.address,
                    5.0,
                    headers=headers,
                )
        assert not member.heads

    on_loop.run(main)


def test_our_own_members_redirect_to_their_leader(kind: ServerKind) -> None:
    async def main() -> None:
        leading, following = Handler(cluster_id="c1"), Handler(cluster_id="c1")

        async def lead() -> None:
            async for request in leading.requests():
                request.respond()

        async def follow() -> None:
            async for request in following.requests():
                leader = Leader(ServerID("n1"), ServerAddress(f"127.0.0.1:{leader_port}"))
                request.fail(DifferentLeaderError("not me", leader=leader))

        async with kind.serve(leading) as leader_port, kind.serve(following) as port:
            tasks = [asyncio.create_task(lead()), asyncio.create_task(follow())]
            assert await join(f"127.0.0.1:{port}") == "c1"
            await leading.close()
            await following.close()
            await asyncio.gather(*tasks)

    kind.run(main)
