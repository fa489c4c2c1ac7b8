"""Clusters behind real proxies, whose sections are the files of `docs/how-to/proxies`.

Without nginx and haproxy nothing here is collected but `test_installed.py`, which says so once.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from rafthttp.testing.proxies import Kind, ProxiedCluster, Proxy, Upstream, missing_proxies

if missing_proxies():
    collect_ignore = [
        path.name
        for path in Path(__file__).parent.glob("test_*.py")
        if "installed" not in path.name
    ]

TEMPLATES = Path(__file__).parents[2] / "docs" / "how-to" / "proxies"

ClusterFactory = Callable[..., tuple[ProxiedCluster, Proxy]]


def _kind(template: str) -> Kind:
    return "nginx" if template.startswith("nginx") else "haproxy"


@contextmanager
def running_proxy(
    directory: Path, template: str, members: list[Upstream], **values: str
) -> Generator[Proxy]:
    """A proxy with a file of `docs/how-to/proxies` for each member."""
    text = (TEMPLATES / template).read_text()
    proxy = Proxy(_kind(template), directory, text, members, {"IDLE": "1h", **values})
    try:
        proxy.start()
        yield proxy
    except BaseException:
        print(proxy.log.read_text("utf-8", "replace")[-5000:])
        raise
    finally:
        proxy.close()


@pytest.fixture
def behind(tmp_path: Path) -> Iterator[ClusterFactory]:
    """Starts a proxy and a cluster that speaks only through it."""
    with ExitStack() as stack:

        def make(
            template: str,
            *,
            idle: str = "1h",
            options: tuple[str, ...] = (),
            prefix: str = "",
            pem: Path | None = None,
        ) -> tuple[ProxiedCluster, Proxy]:
            cluster = ProxiedCluster(
                tmp_path / "cluster",
                scheme="http" if pem is None else "https",
                options=options,
                prefix=prefix,
            )
            stack.callback(cluster.close)
            proxy = stack.enter_context(
                running_proxy(
                    tmp_path / "proxy", template, cluster.upstreams, IDLE=idle, PEM=str(pem or "")
                )
            )
            cluster.start_all()
            return cluster, proxy

        yield make
