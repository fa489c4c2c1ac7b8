"""The changes of a configuration that `Raft` offers, as functions from one to the next.

Knows configurations; not when a change may be made (the core does).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from rafthttp.raft.errors import ConfigurationChangeError
from rafthttp.raft.types import Configuration, Server, ServerAddress, ServerID, Suffrage

Change: TypeAlias = Callable[[Configuration], Configuration]


def voter(server_id: ServerID, address: ServerAddress) -> Change:
    """Add a voter, promote a nonvoter, or change a member's address."""
    server = Server(server_id, address, Suffrage.VOTER)
    return lambda configuration: _with(configuration, server)


def nonvoter(server_id: ServerID, address: ServerAddress) -> Change:
    """Add a nonvoter or change a member's address; a voter or staging server stays what it is."""

    def change(configuration: Configuration) -> Configuration:
        known = configuration.get(server_id)
        suffrage = Suffrage.NONVOTER if known is None else known.suffrage
        return _with(configuration, Server(server_id, address, suffrage))

    return change


def staging(server_id: ServerID, address: ServerAddress) -> Change:
    """Add a server that is to get a vote, or mark a nonvoter so; a voter stays one."""

    def change(configuration: Configuration) -> Configuration:
        vote = configuration.has_vote(server_id)
        suffrage = Suffrage.VOTER if vote else Suffrage.STAGING
        return _with(configuration, Server(server_id, address, suffrage))

    return change


def demoted(server_id: ServerID) -> Change:
    """Take the vote of a member; an unknown id changes nothing."""

    def change(configuration: Configuration) -> Configuration:
        server = configuration.get(server_id)
        if server is None:
            return configuration
        return _with(configuration, server._replace(suffrage=Suffrage.NONVOTER))

    return change


def removed(server_id: ServerID) -> Change:
    """Remove a member; an unknown id changes nothing."""
    return lambda configuration: configuration.without(server_id)


def checked(change: Change) -> Change:
    """The same change, refused where the outcome is no configuration a cluster can have.

    Raises:
        ConfigurationChangeError: from the function returned.
    """

    def apply(configuration: Configuration) -> Configuration:
        try:
            changed = change(configuration)
        except ValueError as error:
            raise ConfigurationChangeError(str(error)) from error
        if not changed.voters:
            raise ConfigurationChangeError("the cluster would be left without a voter")
        return changed

    return apply


def _with(configuration: Configuration, server: Server) -> Configuration:
    owner = configuration.by_address(server.address)
    if owner is not None and owner.id != server.id:
        raise ConfigurationChangeError(
            f"address {server.address} belongs to server {owner.id} already"
        )
    return configuration.with_server(server)
