"""Clusters with real hashicorp/raft members.

Without the Go program nothing here is collected but `test_built.py`, which says so once.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

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


@pytest.fixture
def make_cluster(tmp_path: Path) -> Iterator[ClusterFactory]:
    """Makes clusters that are not started: `make_cluster("gpp", options={…})`."""
    with ExitStack() as stack:
        count = 0

        def make(shape: str, **options: object) -> MixedCluster:
            nonlocal count
            count += 1
            directory = tmp_path / f"cluster{count}"
            return stack.enter_context(mixed_cluster(directory, shape, **options))  # type: ignore[arg-type] # as the caller gives them

        yield make
