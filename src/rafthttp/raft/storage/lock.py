"""One process a data directory: an flock'ed file that holds the owner's process id.

The kernel drops the lock with the process, however it ends; a file left behind means nothing.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Final

from rafthttp.raft.errors import DataDirectoryError

LOCK_FILE: Final = "lock"

# A forked child inherits the descriptor and with it the lock: a pool's worker that outlives its
# killed parent would keep the directory. So a child closes its copies; the parent keeps the lock.
_held: Final[set[int]] = set()


def _close_in_child() -> None:
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_close_in_child)


class DirectoryLock:
    """Holds a data directory until `release`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        _held.add(descriptor)

    @classmethod
    def acquire(cls, data_dir: Path) -> DirectoryLock:
        """Create the directory where it is missing, and lock it.

        Raises:
            DataDirectoryError: in use, not a directory, or not writable.
        """
        _make_directory(data_dir)
        try:
            descriptor = os.open(data_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise DataDirectoryError(
                f"data directory {data_dir} is not writable: {error.strerror}"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # In this order, so that on a full disk the block the file has is used again.
            os.ftruncate(descriptor, os.pwrite(descriptor, b"%d\n" % os.getpid(), 0))
        except BlockingIOError:
            owner = _owner(descriptor)
            os.close(descriptor)
            raise DataDirectoryError(f"data directory {data_dir} is in use by {owner}") from None
        except OSError as error:
            os.close(descriptor)
            raise DataDirectoryError(
                f"data directory {data_dir} cannot be locked: {error.strerror}"
            ) from error
        return cls(descriptor)

    def release(self) -> None:
        """Let others in. The file stays: removing it would let two processes lock two files."""
        if self._descriptor in _held:
            _held.discard(self._descriptor)
            os.close(self._descriptor)
        self._descriptor = -1


def _owner(descriptor: int) -> str:
    """Who holds the lock; between taking it and writing the id nothing is known."""
    text = os.pread(descriptor, 32, 0).strip()
    return f"process {int(text)}" if text.isdigit() else "another process"


def _make_directory(data_dir: Path) -> None:
    """Create `data_dir`, and make its name durable where it is new."""
    try:
        missing = [path for path in (data_dir, *data_dir.parents) if not path.exists()]
        data_dir.mkdir(parents=True, exist_ok=True)
        for path in missing:
            sync_directory(path.parent)
    except (FileExistsError, NotADirectoryError):
        raise DataDirectoryError(f"data directory {data_dir} is not a directory") from None
    except OSError as error:
        raise DataDirectoryError(
            f"data directory {data_dir} cannot be created: {error.strerror}"
        ) from error


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a directory, and need no sync of it.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)
