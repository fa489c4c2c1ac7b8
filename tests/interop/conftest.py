"""Clusters with real hashicorp/raft members.

Without the Go program nothing here is collected but `test_built.py`, which says so once.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from rafthttp.testing.interop import MixedCluster, mixed_cluster
from rafthttp.testing.interop_member import missing_go

if missing_go() is not None:
    collect_ignore = [
        path.name
        for path in Path(__file__).parent.glob("test_*.py")
        if path.name != "test_built.py"
    ]

ClusterFactory = Callable[..., MixedCluster]

_CLUSTERS: Final = pytest.StashKey[list[MixedCluster]]()


@pytest.fixture
def make_cluster(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ClusterFactory]:
    """Makes clusters that are not started: `make_cluster("gpp", options={…})`."""
    made: list[MixedCluster] = []
    request.node.stash[_CLUSTERS] = made
    with ExitStack() as stack:

        def make(shape: str, **options: object) -> MixedCluster:
            directory = tmp_path / f"cluster{len(made) + 1}"
            cluster = stack.enter_context(mixed_cluster(directory, shape, **options))  # type: ignore[arg-type] # as the caller gives them
            made.append(cluster)
            return cluster

        yield make


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure's report shows what the members printed; no fixture sees the test's exception."""
    report = yield
    if report.failed and _CLUSTERS in item.stash:
        made = item.stash[_CLUSTERS]
        for number, cluster in enumerate(made, 1):
            report.sections.append((f"members of cluster {number}", cluster.outputs()))
    return report
