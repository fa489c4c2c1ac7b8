"""Says once, and loudly, that the tests behind real proxies did not run."""

import os

import pytest

from rafthttp.testing.proxies import missing_proxies

pytestmark = pytest.mark.proxy


def test_nginx_and_haproxy_are_installed() -> None:
    missing = " and ".join(missing_proxies())
    if missing:
        text = f"NOT TESTED BEHIND REAL PROXIES: {missing} not installed (.ci/run installs them)"
        if os.environ.get("RAFTHTTP_REQUIRE_PROXY") == "1":
            pytest.fail(text)
        pytest.skip(text)
