"""A Django project whose `asgi.py` is the one of docs/reference/servers.md, in real servers."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from rafthttp.testing.ports import free_ports
from rafthttp.testing.processes import eventually
from rafthttp.testing.web_servers import COMMANDS, without

pytestmark = pytest.mark.process

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "servers.md"

SETTINGS = """
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "project.urls"
SECRET_KEY = "of a test"
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"stderr": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["stderr"]},
}
"""
RAFT = """
import os
from rafthttp import Node
from rafthttp.testing.asgi_app import LastValue

value = LastValue()
join = os.environ.get("RAFT_JOIN", "").split()
address = os.environ["RAFT_ADDRESS"]
node = Node(
    os.environ["RAFT_ID"], address, fsm=value, bootstrap=not join, join=join, timeout=5.0,
    data_dir=os.environ["RAFT_DATA"],
)
"""
URLS = """
from asgiref.sync import async_to_sync
from django.http import HttpResponse, JsonResponse
from django.urls import path
from project.raft import node, value

async def put(request):
    return HttpResponse(await node.apply(request.body))

def get(request):
    async_to_sync(node.linearizable)()
    return HttpResponse(value.value)

def state(request):
    leader = node.leader
    voters = node.raft.get_configuration().configuration.voters
    return JsonResponse({"leader": leader and leader.id, "voters": len(voters)})

urlpatterns = [path("put", put), path("get", get), path("state", state)]
"""


def recipe() -> str:
    (code,) = re.findall(r"```python\n(# project/asgi\.py\n.*?)```", PAGE.read_text(), re.DOTALL)
    return str(code)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    made = tmp_path / "project"
    made.mkdir()
    (made / "__init__.py").touch()
    for name, code in {"settings": SETTINGS, "raft": RAFT, "urls": URLS, "asgi": recipe()}.items():
        (made / f"{name}.py").write_text(code)
    return tmp_path


APPLICATION = "project.asgi:application"
TAKEN_OVER = """
import sys, uvicorn
from rafthttp import raft_protocol
uvicorn.run(sys.argv[2], port=int(sys.argv[1]), http=raft_protocol(), ws="none")
"""


def command_of(server: str, port: int) -> list[str]:
    if server == "uvicorn, raft_protocol()":
        return ["-c", TAKEN_OVER, str(port), APPLICATION]
    return ["-m", *COMMANDS[server](port, APPLICATION)]


@contextmanager
def running(
    server: str, name: str, port: int, join: str, project: Path
) -> Generator[subprocess.Popen[bytes]]:
    environment = os.environ | {
        "DJANGO_SETTINGS_MODULE": "project.settings",
        "PYTHONPATH": os.pathsep.join(
            [str(project), *filter(None, [os.environ.get("PYTHONPATH")])]
        ),
        "RAFT_ID": name,
        "RAFT_ADDRESS": f"127.0.0.1:{port}",
        "RAFT_JOIN": join,
        "RAFT_DATA": str(project / name),
    }
    command = [sys.executable, *command_of(server, port)]
    with (project / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("server", ["uvicorn", "uvicorn, raft_protocol()", "hypercorn", "granian"])
def test_a_project_that_hands_the_endpoint_to_the_node(
    server: str, project: Path, hypercorns_own: Callable[[str], set[str]]
) -> None:
    ports = free_ports(2)
    first, second = (f"http://127.0.0.1:{port}" for port in ports)

    def log(name: str) -> str:
        return (project / f"{name}.log").read_text("utf-8")

    with ExitStack() as stack, httpx.Client(timeout=10.0, trust_env=False) as http:

        def whole(url: str, voters: int) -> bool:
            try:
                answer = http.get(f"{url}/state")
            except httpx.TransportError:
                return False
            if answer.status_code != 200:
                return False
            return bool(answer.json() == {"leader": "n1", "voters": voters})

        processes: list[subprocess.Popen[bytes]] = []
        for name, url, port in zip(("n1", "n2"), (first, second), ports, strict=True):
            join = first if processes else ""
            processes.append(stack.enter_context(running(server, name, port, join, project)))
            eventually(lambda u=url: whole(u, len(processes)), f"{name} is a voter")  # type: ignore[misc]  # mypy infers no lambda with defaults
        value = os.urandom(1 << 20)
        answer = http.put(f"{second}/put", content=value)
        assert (answer.status_code, answer.text) == (200, str(len(value))), log("n2")
        for url in (first, second):
            assert http.get(f"{url}/get").content == value
            assert http.get(f"{url}/no").status_code == 404
            assert http.get(f"{url}/raft/").status_code == 404, "Django's, not the endpoint's"
        for name, process in zip(("n2", "n1"), reversed(processes), strict=True):
            process.send_signal(signal.SIGTERM)
            assert process.wait(5.0) in (0, -signal.SIGTERM)
            told = log(name)
            if server == "hypercorn":
                told = without(hypercorns_own(server), told)
            assert "Traceback" not in told, told


@pytest.mark.parametrize("server", ["uvicorn", "hypercorn", "granian"])
def test_a_node_that_cannot_start_keeps_the_server_from_serving(server: str, project: Path) -> None:
    (project / "n1").write_text("no directory")
    (port,) = free_ports(1)
    with running(server, "n1", port, "", project) as process:
        process.wait(20.0)
        told = (project / "n1.log").read_text("utf-8")
    assert f"data directory {project / 'n1'} is not a directory" in told
