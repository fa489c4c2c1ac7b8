"""Members below a path prefix of the proxy, which takes it away: `/app1/raft` becomes `/raft`."""

import asyncio
from collections.abc import Callable

import httpx
import pytest

from rafthttp.kv.client import KVClient, ServiceError
from rafthttp.testing.processes import run_cli
from rafthttp.testing.proxies import ProxiedCluster, Proxy

pytestmark = pytest.mark.proxy
Behind = Callable[..., tuple[ProxiedCluster, Proxy]]

# Not only letters, so that whoever takes it for something escaped is found out.
KEY = "a b//c%2Fd/é?#"


@pytest.mark.parametrize("carrier", ["raw", "websocket"])
@pytest.mark.parametrize("template", ["nginx.conf", "haproxy.cfg"])
def test_members_join_and_clients_write_below_a_prefix(
    behind: Behind, template: str, carrier: str
) -> None:
    # n3 joins through n2, a follower: its redirect to the leader must lead below the prefix again.
    cluster, _ = behind(
        template, options=("--root-path", "/app1", "--carrier", carrier), prefix="/app1"
    )
    first, second, _ = cluster.nodes
    token_file = str(cluster.directory / "token")

    def kv(*arguments: str) -> str:
        done = run_cli(
            "kv", *arguments, "--url", cluster.public_url(second), "--token-file", token_file
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    kv("put", KEY, "value")
    assert kv("get", KEY) == "value"
    assert httpx.get(f"{cluster.public_url(first)}/healthz", trust_env=False).status_code == 200
    assert httpx.get(f"{cluster.public_url(first)}/status", trust_env=False).status_code == 401
    asyncio.run(check_client(cluster))


async def check_client(cluster: ProxiedCluster) -> None:
    first, second, third = cluster.nodes
    async with KVClient([cluster.public_url(first)], token=cluster.token, timeout=20.0) as client:
        assert [item.key async for item in client.list()] == [KEY]  # unescaped by nobody
        assert set(client.urls) == {cluster.public_url(n) for n in (first, second, third)}
        first.kill()  # the proxy's 502 or 503 is no answer about the key
        assert await client.get(KEY) == b"value"
        assert await client.get("no such key") is None
    wrong = cluster.public_url(second).replace("/app1", "/app2")
    async with KVClient([wrong], token=cluster.token, timeout=2.0) as client:
        with pytest.raises(ServiceError, match="404"):
            await client.get(KEY)
