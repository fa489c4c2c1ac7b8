"""How much a peer may send in one frame.

Knows numbers and the error that names them. A peer is authenticated before its bytes come here, but
an authenticated peer may still lie, or be broken.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from rafthttp.raft.errors import ConfigError


@dataclass(frozen=True, slots=True)
class WireLimits:
    """Caps on one inbound frame; over one of them the stream is closed, and the error names it.

    Attributes:
        frame_size_bytes_max: a whole request or response, without a snapshot's raw body. A Go
            leader retries a frame that was refused for ever, so it lies far above what Go sends
            (1,024 entries of any size; 64 entries of 1 MiB pass).
        entries_max: entries in one AppendEntries; above `Config.append_entries_max` and Go's 1,024.
        elements_max: values in fields this version does not know, and fields standing twice. They
            are skipped, not built; the cap bounds the time, about 20 ms. A field that an entry
            leaves out counts eight times: it is filled in, so that an entry of 8 bytes takes 140.
            All entries of a Go node have all fields; of an old one's, without two, 4,096 pass.
        depth_max: nesting inside such a field.
        name_size_bytes_max: an id or an address.
        text_size_bytes_max: an error text.
    """

    frame_size_bytes_max: int = 256 << 20
    entries_max: int = 65536
    elements_max: int = 65536
    depth_max: int = 32
    name_size_bytes_max: int = 1024
    text_size_bytes_max: int = 64 << 10

    def __post_init__(self) -> None:
        for field in fields(self):
            value: int = getattr(self, field.name)
            if value < 1:
                raise ConfigError(f"{field.name} is {value}; it must be at least 1")


DEFAULT_LIMITS = WireLimits()
