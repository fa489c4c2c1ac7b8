"""A leader that dies behind a proxy, whose port goes on answering."""

from collections.abc import Callable

import pytest

from rafthttp.testing.processes import eventually
from rafthttp.testing.proxies import ProxiedCluster, Proxy

pytestmark = pytest.mark.proxy
Behind = Callable[..., tuple[ProxiedCluster, Proxy]]


@pytest.mark.parametrize("template", ["nginx.conf", "haproxy.cfg", "haproxy-tcp.cfg"])
def test_a_killed_leader_is_replaced_early(behind: Behind, template: str) -> None:
    cluster, _ = behind(template, idle="1s")
    old = cluster.wait_until_whole()
    before = cluster.streams_accepted()
    eventually(lambda: cluster.streams_accepted() >= before + 4, "idle streams were cut")
    old.kill()
    new = cluster.leader(timeout=5.0)  # a tenth of a second where nobody is busy
    cluster.start(old)
    assert cluster.wait_until_whole().id == new.id
