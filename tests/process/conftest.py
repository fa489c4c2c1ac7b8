"""Every test here starts real processes; they are gone when it ends."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from rafthttp.testing.processes import ServeCluster, serve_cluster

ClusterFactory = Callable[..., ServeCluster]


@pytest.fixture
def clusters(tmp_path: Path) -> Iterator[ClusterFactory]:
    """Makes clusters in the test's directory."""
    with ExitStack() as stack:

        def make(
            size: int = 3,
            options: tuple[str, ...] = (),
            headers: dict[str, str] | None = None,
        ) -> ServeCluster:
            return stack.enter_context(serve_cluster(tmp_path / "cluster", size, options, headers))

        yield make


@pytest.fixture
def cluster(clusters: ClusterFactory) -> ServeCluster:
    """Three nodes that are members of one cluster."""
    made = clusters()
    made.start_all()
    return made
