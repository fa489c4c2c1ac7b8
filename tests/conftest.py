"""How `pytest -n` shares tests out, and what becomes of one that its machine does not let run.

Files stay whole, and those with processes take turns. A cluster of three processes wants most of a
small machine. Two workers at most have one: all of `tests/process` is a single piece of work, and
so are the proxies with the mixed clusters. Both come first, because they take longest.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NoReturn

import pytest

PIECES = {
    "tests/process": "processes",
    "tests/proxy": "proxies",
    "tests/interop": "proxies",
}


def piece(nodeid: str) -> str:
    path = nodeid.partition("::")[0]
    return PIECES.get("/".join(path.split("/")[:2]), path)


@pytest.fixture(scope="session")
def cannot_mount() -> Callable[[str], NoReturn]:
    """Ends a test for want of a file system of its own; its argument says what is not tested.

    By a skip, or with RAFTHTTP_REQUIRE_MOUNT=1 by a failure.
    """

    def end(text: str) -> NoReturn:
        if os.environ.get("RAFTHTTP_REQUIRE_MOUNT") == "1":
            pytest.fail(text)
        pytest.skip(text)

    return end


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: piece(item.nodeid) not in PIECES.values())


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]  # has no types

    class Pieces(LoadScopeScheduling):  # type: ignore[misc]  # Any, without types
        def _split_scope(self, nodeid: str) -> str:
            return piece(nodeid)

    config.option.loadscopereorder = False  # by the number of tests, which says nothing of time
    return Pieces(config, log)
