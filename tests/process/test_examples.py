"""The examples, run as their first lines say."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from rafthttp.testing.ports import free_ports
from rafthttp.testing.processes import eventually

pytestmark = pytest.mark.process

EXAMPLES = Path(__file__).parents[2] / "examples"


class Replica:
    def __init__(self, example: str, name: str, address: str, directory: Path, *join: str) -> None:
        self.name = name
        self.address = address
        self.log = directory / f"{name}.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, EXAMPLES / example, name, address, directory / name, *join],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def output(self) -> str:
        return self.log.read_text()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], list[Replica]]]:
    """Starts three replicas of an example; none outlives the test."""
    replicas: list[Replica] = []

    def start_three(example: str) -> list[Replica]:
        addresses = [f"127.0.0.1:{port}" for port in free_ports(3)]
        join = f"http://{addresses[0]}"
        for number, address in enumerate(addresses, 1):
            more = () if number == 1 else (join,)
            replicas.append(Replica(example, f"n{number}", address, tmp_path, *more))
        return replicas

    yield start_three
    for replica in replicas:
        replica.process.kill()
        replica.process.wait(10)


def test_the_counter_takes_under_40_lines() -> None:
    """Blank ones and its docstring not counted."""
    code = (EXAMPLES / "fastapi_counter.py").read_text("utf-8").rpartition('"""\n')[2]
    assert sum(1 for line in code.splitlines() if line.strip()) < 40


def test_the_counter_counts_on_every_replica_and_survives_a_kill(
    start: Callable[[str], list[Replica]],
) -> None:
    replicas = start("fastapi_counter.py")
    with httpx.Client(timeout=15, trust_env=False) as client:

        def value(replica: Replica) -> int | None:
            try:
                answer = client.get(f"http://{replica.address}/value")
            except httpx.TransportError:
                return None
            return int(answer.text) if answer.status_code == 200 else None

        def counted(replica: Replica, wanted: int) -> bool | None:
            return value(replica) == wanted or None

        for replica in replicas:
            eventually(partial(counted, replica, 0), f"{replica.name} to serve")
        total = 0
        for number, replica in enumerate(replicas, 1):
            total += number
            answer = client.post(f"http://{replica.address}/add/{number}")
            assert answer.json() == total
        assert [value(replica) for replica in replicas] == [6, 6, 6]
        # All three are voters once they serve reads; the first one led until here.
        replicas[0].process.kill()
        replicas[0].process.wait(10)
        for replica in replicas[1:]:
            eventually(partial(counted, replica, 6), f"{replica.name} to go on")
        assert client.post(f"http://{replicas[2].address}/add/4").json() == 10


def test_a_payment_is_made_once_whoever_is_asked_again(
    start: Callable[[str], list[Replica]],
) -> None:
    replicas = start("fastapi_payments.py")
    with httpx.Client(timeout=15, trust_env=False) as client:

        def pay(replica: Replica, key: str, cents: int) -> httpx.Response:
            payment = {"to": "shop", "cents": cents}
            headers = {"Idempotency-Key": key}
            return client.post(f"http://{replica.address}/pay", json=payment, headers=headers)

        def balance(replica: Replica) -> str | None:
            try:
                answer = client.get(f"http://{replica.address}/balance/shop")
            except httpx.TransportError:
                return None
            return answer.text if answer.status_code == 200 else None

        for replica in replicas:
            eventually(partial(balance, replica), f"{replica.name} to serve")
        assert [pay(replica, "first", 100).text for replica in replicas] == ["100"] * 3
        assert pay(replicas[2], "second", 50).text == "150"
        assert [pay(replica, "first", 100).text for replica in replicas] == ["100"] * 3
        assert pay(replicas[1], "first", 999).status_code == 422
        replicas[0].process.kill()
        replicas[0].process.wait(10)
        for replica in replicas[1:]:
            eventually(lambda r=replica: pay(r, "first", 100).text == "100", f"{replica.name}")  # type: ignore[misc] # mypy infers no lambda with defaults
            assert balance(replica) == "150"


def test_one_replica_works_and_another_takes_over(
    start: Callable[[str], list[Replica]],
) -> None:
    replicas = start("plain.py")
    first, *others = replicas
    eventually(lambda: "n1 works" in first.output() or None, "n1 to work")
    with httpx.Client(timeout=15, trust_env=False) as client:

        def is_voter(replica: Replica) -> bool | None:
            # Joining is idempotent: 200 says that it is a voter at this address.
            query = {"id": replica.name, "address": replica.address}
            answer = client.post(f"http://{first.address}/raft", params=query)
            return answer.status_code == 200 or None

        for replica in others:
            eventually(partial(is_voter, replica), f"{replica.name} to be a voter")
    assert [r.name for r in replicas if "works" in r.output()] == ["n1"]
    first.process.kill()
    first.process.wait(10)
    eventually(lambda: any("works" in r.output() for r in others) or None, "another to work")
    assert len([r for r in others if "works" in r.output()]) == 1
    assert all("Traceback" not in r.output() for r in replicas)


def test_a_lock_is_held_by_one_and_survives_a_kill(start: Callable[[str], list[Replica]]) -> None:
    replicas = start("aiohttp_lock.py")
    with httpx.Client(timeout=15, trust_env=False) as client:

        def ask(replica: Replica, method: str, owner: str, seconds: float = 60) -> httpx.Response:
            query = {"owner": owner, "seconds": str(seconds)}
            return client.request(method, f"http://{replica.address}/locks/backup", params=query)

        def serves(replica: Replica) -> bool | None:
            try:
                return ask(replica, "POST", "first").status_code == 200 or None
            except httpx.TransportError:
                return None

        for replica in replicas:
            eventually(partial(serves, replica), f"{replica.name} to serve")
        token = ask(replicas[2], "POST", "first").json()["token"]
        refused = ask(replicas[1], "POST", "second")
        assert (refused.status_code, refused.json()["holder"]) == (409, "first")
        replicas[0].process.kill()
        replicas[0].process.wait(10)

        def released() -> bool | None:
            return ask(replicas[1], "DELETE", "first").status_code in (200, 409) or None

        eventually(released, "the lock to be released by the survivors")
        taken = ask(replicas[2], "POST", "second", seconds=0.2)
        assert taken.json()["token"] > token, "a later holder has a higher token"
        # It expires by itself, on the clock of the log.

        def take() -> httpx.Response | None:
            answered = ask(replicas[1], "POST", "third")
            return answered if answered.status_code == 200 else None

        third = eventually(take, "the lock to expire")
        assert third.json()["token"] > taken.json()["token"]
