"""Which numbers of a peer this server takes over.

Knows terms and indexes as integers. Terms only rise and the disk ends at 2**63: one message that
shows a term near the end would leave the cluster none to elect another leader in, for ever.
"""

from __future__ import annotations

from typing import Final

from rafthttp.raft.core.consensus import Consensus
from rafthttp.raft.errors import ProtocolError
from rafthttp.raft.types import Index, Term

NUMBER_MAX: Final = (1 << 63) - 1
"""The greatest term and index: what the log store can keep."""

TERM_STEP_MAX: Final = 1 << 40
"""By how much one message may raise the term of a server that has a log. At an election a second
this takes 34,000 years; the way to `NUMBER_MAX` has eight million such steps."""


def is_plausible_term(core: Consensus, term: Term) -> bool:
    """Whether a correct server of this cluster may be in this term.

    A server that has nothing yet takes any term that leaves room for more.
    """
    if core.last_index == 0:
        return term <= NUMBER_MAX - TERM_STEP_MAX
    return term <= min(core.term + TERM_STEP_MAX, NUMBER_MAX)


def check_numbers(core: Consensus, term: Term, *indexes: Index) -> None:
    """Refuse what no correct server of this cluster sends.

    Raises:
        ProtocolError: the term or an index is out of range.
    """
    if not is_plausible_term(core, term):
        raise ProtocolError(f"term {term} is implausible here, in term {core.term}")
    if max(indexes) > NUMBER_MAX:
        raise ProtocolError(f"index {max(indexes)} is out of range")
