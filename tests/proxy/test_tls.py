"""TLS ends at the proxy: the nodes behind it serve plain HTTP and dial each other by https."""

import ssl
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import trustme

from rafthttp.testing.proxies import ProxiedCluster, Proxy

pytestmark = pytest.mark.proxy
Behind = Callable[..., tuple[ProxiedCluster, Proxy]]


@pytest.mark.parametrize("template", ["nginx-tls.conf", "haproxy-tls.cfg"])
@pytest.mark.parametrize("carrier", ["raw", "websocket"])
def test_members_reach_each_other_by_https(
    behind: Behind, tmp_path: Path, template: str, carrier: str
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "proxy.pem"))

    cluster, _ = behind(
        template,
        options=("--tls-at-proxy", "--tls-ca", str(tmp_path / "ca.pem"), "--carrier", carrier),
        pem=tmp_path / "proxy.pem",
    )
    leader = cluster.wait_until_whole()
    follower = next(node for node in cluster.nodes if node.id != leader.id)
    (term,) = cluster.terms()

    trusting = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    headers = {"Authorization": f"Bearer {cluster.token}"}
    with httpx.Client(verify=trusting, trust_env=False, headers=headers) as client:
        url = f"{cluster.public_url(follower)}/kv/key"
        assert client.put(url, content=b"value").status_code == 204  # forwarded by https, too
        assert client.get(url).content == b"value"
    assert cluster.terms() == {term}
