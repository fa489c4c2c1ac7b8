"""Clients of a mixed cluster that write while members are killed, and remember what they were told.

Every id is sent once: after a definite refusal a fresh one is used, so an id that is applied twice
is the cluster's doing.
"""

from __future__ import annotations

import json
import threading
import time
from typing import Final, Self

import httpx

from rafthttp.testing.interop import MixedCluster
from rafthttp.testing.interop_member import Member
from rafthttp.testing.processes import DEADLINE_SECONDS, eventually

# After a refusal, before another member is asked: an election takes longer.
_PAUSE_SECONDS: Final = 0.02


class Writer:
    """Writes batches through whoever leads, from `clients` threads, until stopped.

    Args:
        cluster: whose leader is asked.
        prefix: begins every id.
        clients: threads.
        batch: commands proposed at once by a client.
        size: bytes of each value.
        goal: stop by itself once this many are acknowledged; 0: go on until `stop`.

    Attributes:
        acknowledged: index of each command that was applied, by id.
        unknown: ids whose outcome is unknown: they may be applied or not.
    """

    def __init__(
        self,
        cluster: MixedCluster,
        prefix: str = "w",
        *,
        clients: int = 4,
        batch: int = 25,
        size: int = 32,
        goal: int = 0,
    ) -> None:
        self._cluster, self._prefix, self._batch = cluster, prefix, batch
        self._size, self._goal = size, goal
        self._stopping = threading.Event()
        self._mutex = threading.Lock()
        self._next = 0
        self.acknowledged: dict[str, int] = {}
        self.unknown: set[str] = set()
        self.failure: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._run, args=(number,), daemon=True)
            for number in range(clients)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End all clients, after the answers they wait for.

        Raises:
            AssertionError: one of them did not end, or failed in a way no client should see.
        """
        self._stopping.set()
        self.join()

    def join(self, timeout: float = DEADLINE_SECONDS) -> None:
        """Wait until `goal` is reached. As `stop`."""
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            assert not thread.is_alive(), (
                f"{len(self.acknowledged)} acknowledged, and a client hangs"
            )
        if self.failure is not None:
            raise AssertionError(f"a client failed: {self.failure!r}") from self.failure

    def wait_acknowledged(self, count: int, timeout: float = DEADLINE_SECONDS) -> None:
        """Wait until at least `count` commands more are acknowledged than now."""
        goal = len(self.acknowledged) + count
        done = f"{goal} commands are acknowledged"
        eventually(lambda: len(self.acknowledged) >= goal or self.failure, done, timeout)

    def _run(self, number: int) -> None:
        try:
            with httpx.Client(trust_env=False, timeout=15.0) as http:
                asked = number
                while not self._is_done():
                    members = self._cluster.members
                    member = members[asked % len(members)]
                    if not self._write(http, member):
                        asked += 1
                        time.sleep(_PAUSE_SECONDS)
        except BaseException as error:  # noqa: BLE001 - a thread's top: `join` raises it
            self.failure = error

    def _is_done(self) -> bool:
        return self._stopping.is_set() or 0 < self._goal <= len(self.acknowledged)

    def _write(self, http: httpx.Client, member: Member) -> bool:
        """One batch; False where this member is not the one to ask."""
        ids = self._fresh_ids()
        body = json.dumps({"ids": ids, "size": self._size})
        try:
            answer = http.post(f"http://{member.listening}/applies", content=body)
            results = answer.json()["results"]
        except httpx.ConnectError:
            return False
        except (httpx.HTTPError, ValueError):  # no answer, or half of one
            with self._mutex:
                self.unknown.update(ids)
            return False
        went_well = True
        with self._mutex:
            for result in results:
                if result.get("index"):
                    self.acknowledged[result["id"]] = result["index"]
                    continue
                went_well = False
                if result["outcome"] == "unknown":
                    self.unknown.add(result["id"])
        return went_well

    def _fresh_ids(self) -> list[str]:
        with self._mutex:
            first = self._next
            self._next += self._batch
        return [f"{self._prefix}-{number}" for number in range(first, first + self._batch)]

    def assert_kept(self, member: Member) -> None:
        """Every acknowledged command is in the member's state once, at its index's place in order.

        And nothing is there that a client was definitely told is not.
        """
        applied = [name for name in member.ids() if name.startswith(self._prefix + "-")]
        kept = set(applied)
        assert len(kept) == len(applied)
        lost = self.acknowledged.keys() - kept
        assert not lost, f"{member.id} lost {len(lost)} acknowledged commands: {sorted(lost)[:5]}"
        ghosts = kept - self.acknowledged.keys() - self.unknown
        assert not ghosts, f"{member.id} applied refused commands: {sorted(ghosts)[:5]}"
        ordered = [self.acknowledged[name] for name in applied if name in self.acknowledged]
        assert ordered == sorted(ordered), f"{member.id} applied in another order"
        stats = member.stats()
        assert stats is not None
        assert stats["fsm"]["twice"] == [], f"{member.id} applied twice: {stats['fsm']['twice']}"
