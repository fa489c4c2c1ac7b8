"""How a server of `corenet` takes in a snapshot: in one go, or in steps that others come between.

A step is a message to itself: the scheduler delivers it when it likes, or drops it, which is a
stream that was cut. Knows the driver's duties of `core.snapshots`.
"""

from __future__ import annotations

from typing import Protocol

from rafthttp.raft.core.consensus import Consensus
from rafthttp.raft.types import ServerID
from rafthttp.testing.coremember import InstallStep, Member, Message, SnapshotFrame


class Net(Protocol):
    """What is asked of `CoreNet`."""

    now_ns: int
    messages: list[Message]
    slow_installs: bool

    def post(self, source: ServerID, target: ServerID, body: InstallStep) -> Message:
        """Put a message on the network."""
        ...

    def settle(self, member: Member) -> None:
        """Take and carry out what a server has to do."""
        ...


def is_step_at(message: Message, member_id: ServerID) -> bool:
    """Whether it is a step of an install of that server."""
    return message.target == member_id and isinstance(message.body, InstallStep)


def begin_install(
    net: Net, member: Member, core: Consensus, message: Message, frame: SnapshotFrame
) -> None:
    """An InstallSnapshot came."""
    snapshot, number = frame.snapshot, message.number
    if not core.on_install_snapshot(
        number,
        message.source,
        frame.ask.term,
        snapshot.last_index,
        snapshot.last_term,
        net.now_ns,
    ):
        return
    for before in [m for m in net.messages if is_step_at(m, member.id)]:
        assert isinstance(before.body, InstallStep), "asked above"
        # A leader sends one at a time: the one before is dead, unless it counts already.
        if before.body.visible:
            core.on_snapshot_failed(number, net.now_ns)
            return
        net.messages.remove(before)
        core.on_snapshot_failed(before.body.number, net.now_ns)
    step = InstallStep(number, frame, visible=False)
    if net.slow_installs:
        net.post(message.source, member.id, step)
    else:
        advance_install(net, member, core, step)


def advance_install(net: Net, member: Member, core: Consensus, step: InstallStep) -> None:
    """The next step; all of them where they are not slow."""
    snapshot, number, now_ns = step.frame.snapshot, step.number, net.now_ns
    if not step.visible:
        if not core.on_snapshot_arrived(
            number, step.frame.ask.term, snapshot.last_index, snapshot.last_term, now_ns
        ):
            return
        own = member.disk.snapshot
        if own is None or own.last_index < snapshot.last_index:
            member.disk.snapshot = snapshot
        if net.slow_installs:
            net.post(member.id, member.id, step._replace(visible=True))
            return
    if core.on_snapshot_installed(
        number,
        snapshot.last_index,
        snapshot.last_term,
        snapshot.configuration,
        snapshot.configuration_index,
        now_ns,
    ):
        if core.first_index == snapshot.last_index + 1:
            member.base, member.log = snapshot.last_index, []
        member.applied = list(snapshot.state)


def lose_install(net: Net, member: Member, step: InstallStep) -> None:
    """The stream was cut; what is visible already cannot be taken back."""
    if member.core is None:
        return
    if step.visible:
        advance_install(net, member, member.core, step)
    else:
        member.core.on_snapshot_failed(step.number, net.now_ns)
    net.settle(member)
