"""A proxy as it comes passes no upgrade on: whoever joins behind it is told so."""

import re
from contextlib import closing
from pathlib import Path

import pytest

from rafthttp.testing.processes import eventually
from rafthttp.testing.proxies import ProxiedCluster, Proxy

pytestmark = pytest.mark.proxy

# nginx's own defaults: HTTP/1.0 towards the node, and no hop-by-hop header.
WITHOUT_UPGRADE = "server { listen @LISTEN@; location / { proxy_pass http://@NODE@; } }"


@pytest.mark.parametrize("carrier", ["raw", "websocket", "auto"])
def test_a_stripped_upgrade_is_named_in_the_joiners_log(tmp_path: Path, carrier: str) -> None:
    with closing(
        ProxiedCluster(tmp_path / "cluster", size=2, options=("--carrier", carrier))
    ) as cluster:
        proxy = Proxy("nginx", tmp_path / "proxy", WITHOUT_UPGRADE, cluster.upstreams, {})
        with closing(proxy):
            proxy.start()
            first, second = cluster.nodes
            cluster.start(first, "--bootstrap")
            cluster.start(second, "--join", cluster.public_url(first))
            sentence = re.compile(
                r"this node's own address: no stream to [0-9.:]+: expected 101, the peer answered"
                r" 400, as to a plain GET: a proxy in between may have removed the Upgrade header"
            )
            eventually(lambda: sentence.search(second.output()), "the sentence is logged", 10.0)
            refusal = r"cannot join: .* answered 403: .* a proxy in between may have"
            eventually(lambda: re.search(refusal, second.output()), "so is the refusal", 5.0)
