"""`rafthttp recover`: the data of one stopped `rafthttp serve` node, given other members.

Knows the data directory's parts and the key-value service's state machine; what a recovery is, is
`recover_cluster`'s matter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from rafthttp import (
    Config,
    Configuration,
    FileSnapshotStore,
    Log,
    SessionFSM,
    SqliteStore,
    get_configuration,
    read_config_json,
    recover_cluster,
)
from rafthttp.cli.output import CommandFailedError, note, out, size_text
from rafthttp.cli.serve import parse_address
from rafthttp.kv.commands import CommandError
from rafthttp.kv.fsm import KVStateMachine

_SNAPSHOTS: Final = "snapshots"  # where `Node` keeps them


def recover(
    data_dir: Annotated[Path, typer.Option(metavar="DIR", help="Data of the node, stopped.")],
    servers: Annotated[
        Path,
        typer.Option(metavar="FILE", help="The members from now on: hashicorp/raft's peers.json."),
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would do.")] = False,
) -> None:
    """Give a stopped node other members: for a cluster whose quorum is lost for good."""
    configuration = read_config_json(servers)
    for number, server in enumerate(configuration):
        parse_address(server.address, f"{servers}: [{number}].address")
    with closing(SqliteStore.open(data_dir, None)) as store:
        snapshots = FileSnapshotStore(data_dir / _SNAPSHOTS)
        if configuration.get(store.node_id) is None:
            raise CommandFailedError(
                f"{data_dir} is the data of {store.node_id}, which is not in {servers}"
            )
        before = get_configuration(store, store, snapshots).configuration
        _say_plan(store, snapshots, before, configuration)
        if dry_run:
            out("Dry run: nothing was changed.")
            return
        try:
            done = asyncio.run(
                recover_cluster(
                    Config(store.node_id),
                    SessionFSM(_StrictStateMachine()),
                    store,
                    store,
                    snapshots,
                    configuration,
                )
            )
        except CommandError as error:
            raise CommandFailedError(
                f"{data_dir} is not the key-value service's ({error}); an application calls"
                " rafthttp.recover_cluster with its own state machine. Nothing was changed"
            ) from None
    out(
        f"Recovered: a snapshot at entry {done.index} ({size_text(done.size)}),"
        f" {done.replayed} entries replayed."
    )
    if len(configuration.servers) > 1:
        out(f"Do the same with {servers} on the other members' data, then start them all.")
    else:
        out("Start it with `rafthttp serve` as before.")


class _StrictStateMachine(KVStateMachine):
    """Takes nothing it does not understand: those data are not its own, and would be lost."""

    def apply_batch(self, logs: Sequence[Log]) -> Sequence[Any]:
        return [self.apply(log) for log in logs]

    def apply(self, log: Log) -> Any:
        try:
            return super().apply(log)
        except CommandError as error:
            raise CommandError(f"entry {log.index}: {error}") from None


def _say_plan(
    store: SqliteStore, snapshots: FileSnapshotStore, before: Configuration, after: Configuration
) -> None:
    index, term = _last_entry(store, snapshots)
    out(f"{store.node_id}'s last entry is {index}, of term {term}. Its members were")
    _say_members(before)
    out("and will be")
    _say_members(after)
    gone = [server.id for server in before if after.get(server.id) is None]
    if gone:
        out(f"Left out: {', '.join(gone)}. Delete their data before they start again, if ever.")
    note(
        "rafthttp: warning: writes that only other nodes have are lost; writes that were never"
        " acknowledged may appear"
    )


def _last_entry(store: SqliteStore, snapshots: FileSnapshotStore) -> tuple[int, int]:
    """Index and term, by which nodes are compared; 0 where there is none."""
    last = store.last_index()
    if last >= store.first_index():
        return last, store.term_at(last)
    metas = snapshots.list()
    return (metas[0].index, metas[0].term) if metas else (0, 0)


def _say_members(configuration: Configuration) -> None:
    width = max((len(server.id) for server in configuration), default=0)
    for server in configuration:
        out(f"  {server.id:<{width}}  {server.address}  {server.suffrage.name.lower()}")
