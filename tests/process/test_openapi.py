"""The key-value API of a real `serve` process, held to its own OpenAPI description.

Schemathesis makes requests out of the description, well-formed and not; every answer must be one
that the description names, of the form it names, and none may be a 5xx.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rafthttp.testing.processes import ServeCluster, serve_cluster

pytestmark = pytest.mark.process

EXAMPLES: Final = 25
SOAK_EXAMPLES: Final = 2000

OPERATIONS: Final = [
    "GET /kv/{key}",
    "PUT /kv/{key}",
    "DELETE /kv/{key}",
    "GET /kv",
    "POST /sessions",
    "GET /status",
    "GET /healthz",
    "POST /transfer",
    "POST /leave",
]
"""The last one is refused by the only voter of a cluster, and so leaves it in place."""
SECONDS_MAX: Final = 1.0

FAITHFUL: Final = [
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeCluster]:
    with serve_cluster(tmp_path_factory.mktemp("described") / "cluster", 1) as cluster:
        cluster.start_all()
        yield cluster
        assert "Traceback" not in cluster.logs()


@pytest.fixture(scope="module")
def described(served: ServeCluster) -> Any:
    schemathesis: Any = importlib.import_module("schemathesis")
    return schemathesis.openapi.from_url(f"{served.nodes[0].url}/openapi.json")


def check_operation(described: Any, served: ServeCluster, name: str, examples: int) -> None:
    schemathesis: Any = importlib.import_module("schemathesis")
    checks: Any = importlib.import_module("schemathesis.checks")
    method, _, path = name.partition(" ")
    operation = described[path][method]
    faithful = [checks.CHECKS.get_one(check) for check in FAITHFUL]
    modes = schemathesis.GenerationMode
    strategy = st.one_of(
        operation.as_strategy(generation_mode=modes.POSITIVE),
        operation.as_strategy(generation_mode=modes.NEGATIVE),
    )
    statuses: set[int] = set()

    @settings(
        deadline=None,
        max_examples=examples,
        suppress_health_check=[
            HealthCheck.too_slow,
            HealthCheck.data_too_large,
            HealthCheck.filter_too_much,
        ],
    )
    @given(strategy)
    def try_one(case: Any) -> None:
        response = case.call(base_url=served.nodes[0].url, timeout=20.0)
        if response.elapsed >= SECONDS_MAX:  # once more, on a busy machine
            response = case.call(base_url=served.nodes[0].url, timeout=20.0)
        assert response.elapsed < SECONDS_MAX, case
        statuses.add(response.status_code)
        # One alone has nobody to hand leadership to, and no third party makes it.
        transfer = path == "/transfer" and "to" not in (case.query or {})
        assert response.status_code < 500 or (transfer and response.status_code == 503), case
        if response.status_code != 405:  # a method that a negative case has changed
            case.validate_response(response, checks=faithful)

    try_one()
    assert statuses, name


@pytest.mark.parametrize("name", OPERATIONS)
def test_answers_are_as_described(described: Any, served: ServeCluster, name: str) -> None:
    check_operation(described, served, name, EXAMPLES)


@pytest.mark.soak
@pytest.mark.parametrize("name", OPERATIONS)
def test_many_answers_are_as_described(described: Any, served: ServeCluster, name: str) -> None:
    check_operation(described, served, name, SOAK_EXAMPLES)


def test_every_operation_is_tried(described: Any) -> None:
    found = {
        f"{result.ok().method.upper()} {result.ok().path}"
        for result in described.get_all_operations()
    }
    assert found == set(OPERATIONS)
