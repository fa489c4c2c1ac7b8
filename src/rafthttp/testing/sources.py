"""A file as the source of a snapshot that a test sends by hand."""

from __future__ import annotations

import asyncio
import io
from typing import BinaryIO


class FileSource:
    """Implements `SnapshotSource`.

    Args:
        file: or bytes; read on a thread, so that it may wait for the test.
    """

    def __init__(self, file: BinaryIO | bytes) -> None:
        self._file = io.BytesIO(file) if isinstance(file, bytes) else file

    async def read(self, size: int, /) -> bytes:
        """Up to `size` bytes."""
        return await asyncio.to_thread(self._file.read, size)
