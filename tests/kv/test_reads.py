"""Linearizable reads over HTTP where the leader is of another kind, or asks nobody."""

from collections.abc import Callable, Coroutine
from typing import Any

Run = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]


def test_under_a_leader_in_go_a_followers_read_is_a_definite_refusal(
    run: Run, services: Any, http: Any
) -> None:
    """hashicorp/raft takes no forwards: its raft-http answers 405. A stale read still works."""

    async def scenario() -> None:
        async with services(2) as (n1, n2), http(n2) as client:
            assert (await client.put("/kv/a", content=b"1")).status_code == 204
            n1.node.handler.forward = None
            refused = await client.get("/kv/a")
            assert refused.status_code == 503
            assert refused.json()["outcome"] == "definite"
            assert refused.json()["leader"] == {"id": "n1", "address": n1.node.address}
            stale = await client.get("/kv/a", params={"consistency": "stale"})
            assert (stale.status_code, stale.content) == (200, b"1")

    run(scenario)
