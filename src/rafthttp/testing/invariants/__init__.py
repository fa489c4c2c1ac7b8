"""Raft's properties, checked on every step of a simulated history. One file each.

| file | property | source |
|---|---|---|
| `election_safety` | one leader a term | Raft §5.2 |
| `leader_append_only` | a leader's log only grows | §5.3 |
| `log_matching` | same index and term, same entry and forerunner | §5.3 |
| `leader_completeness` | a leader holds all that is committed | §5.4 |
| `state_machine_safety` | one entry an index, one state an entry | §5.4.3 |
| `durable_commit` | committed is durable on a quorum | §5.3, thesis §10.2.1 |
| `acknowledged` | no answer before what it says is durable | Figure 2 |
| `monotonic` | term, vote, commit and applied do not fall | Figure 2 |
| `order` | purged <= snapshot <= applied <= committed <= last | §5.3, §7 |
| `configurations` | one change at a time, after a commit of the own term | thesis §4.1 |
| `fresh_reads` | a read covers what was committed when it was asked | §8, thesis §6.4 |
| `healed` | after healing: one leader, serving, converged, every answer kept | §5.4.3 |
| `bounded` | elections and snapshots a second | thesis §9.3 |
| `linearizable` | what clients saw happened in one order | §8, thesis §6.3 |
"""

from rafthttp.testing.invariants.checks import Checks
from rafthttp.testing.invariants.error import InvariantError

__all__ = ["Checks", "InvariantError"]
