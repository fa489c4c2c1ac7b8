"""A directory tree into the key-value service, and out again.

Knows files and the client; prints nothing (progress is the caller's). A file's key is its path
within the tree, with slashes; empty directories and links are not stored.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Final, TypeVar

from rafthttp import RaftHttpError
from rafthttp.kv.client import KVClient, ServiceError
from rafthttp.kv.commands import CommandError, check_key

# What the service answers because of one key or value.
_ONE_FILES_STATUS: Final = frozenset({400, 413})
# Requests under way at once. More only lengthens the leader's queue; each holds a file in memory.
JOBS_DEFAULT: Final = 8


class TransferError(RaftHttpError):
    """An import or export cannot begin or is not whole; the text says what is missing."""


@dataclass(slots=True)
class Transfer:
    """How far an import or export has come.

    Attributes:
        files: done by now.
        size: bytes of them.
        files_total: all there are.
        size_total: bytes of them.
        failed: name and reason, for each file that was given up.
    """

    files_total: int = 0
    size_total: int = 0
    files: int = 0
    size: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])


Progress = Callable[[Transfer], None]
_T = TypeVar("_T")
_Work = Callable[[_T, int], Awaitable[None]]


async def import_tree(
    client: KVClient,
    directory: Path,
    *,
    prefix: str = "",
    exclude: Sequence[str] = (),
    jobs: int = JOBS_DEFAULT,
    on_progress: Progress = lambda _: None,
) -> Transfer:
    """Store every regular file of a tree, then check with a listing that all are there.

    A file that cannot be read, or that the service refuses, is noted in `failed`; the others go on.

    Args:
        client: whose timeout is for one file.
        directory: the tree's root.
        prefix: stands before each key.
        exclude: patterns; a file or directory whose name matches one is left out.
        jobs: files under way at once.
        on_progress: called after each file.

    Raises:
        TransferError: it is no directory, or the listing does not agree in the end.
        ServiceError: nobody answered in time, or this client may not use the service.
    """
    if not await asyncio.to_thread(directory.is_dir):
        raise TransferError(f"{directory} is not a directory")
    files = await asyncio.to_thread(lambda: list(_walk(directory, exclude)))
    transfer = Transfer(len(files), sum(size for _, size in files))
    stored: dict[str, int] = {}

    async def store(path: Path, size: int) -> None:
        name = path.relative_to(directory).as_posix()
        try:
            key = prefix + name
            check_key(key)
            value = await asyncio.to_thread(path.read_bytes)
            await client.put(key, value)
        except (OSError, CommandError, ServiceError) as error:
            _note_failure(transfer, name, error)
        else:
            stored[key] = len(value)
            transfer.files += 1
            transfer.size += size
        on_progress(transfer)

    await _each(files, store, jobs)
    listed = {info.key: info.size async for info in client.list(prefix)}
    missing = sorted(key for key, size in stored.items() if listed.get(key) != size)
    if missing:
        raise TransferError(f"{len(missing)} files are not as stored, {missing[0]!r} first")
    return transfer


async def export_tree(
    client: KVClient,
    directory: Path,
    *,
    prefix: str = "",
    stale: bool = False,
    jobs: int = JOBS_DEFAULT,
    on_progress: Progress = lambda _: None,
) -> Transfer:
    """Write every key with a prefix as a file, checked against the node's SHA-256 and read back.

    Args:
        client: whose timeout is for one file.
        directory: made where missing; files in it are overwritten.
        prefix: is cut off the keys.
        stale: read the asked node's own state instead of the cluster's.
        jobs: files under way at once.
        on_progress: called after each file.

    Raises:
        TransferError: the directory cannot be made.
        ServiceError: nobody answered in time, or this client may not use the service.
    """
    try:
        await asyncio.to_thread(directory.mkdir, parents=True, exist_ok=True)
    except OSError as error:
        raise TransferError(f"cannot write to {directory}: {error.strerror}") from error
    keys = [info async for info in client.list(prefix, stale=stale)]
    transfer = Transfer(len(keys), sum(info.size for info in keys))

    async def fetch(key: str, size: int) -> None:
        try:
            path = _target(directory, key.removeprefix(prefix))
            got = await client.get_with_digest(key, stale=stale)
            if got is None:
                raise TransferError("it was deleted meanwhile")
            await asyncio.to_thread(_write_checked, path, *got)
        except (OSError, TransferError, ServiceError) as error:
            _note_failure(transfer, key, error)
        else:
            transfer.files += 1
            transfer.size += size
        on_progress(transfer)

    await _each([(info.key, info.size) for info in keys], fetch, jobs)
    return transfer


def tree_digests(directory: Path, exclude: Sequence[str] = ()) -> dict[str, str]:
    """SHA-256 of every regular file of a tree, by its key."""
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path, _ in _walk(directory, exclude)
    }


def _walk(directory: Path, exclude: Sequence[str]) -> Iterator[tuple[Path, int]]:
    def is_excluded(name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in exclude)

    for parent, directories, names in os.walk(directory):
        directories[:] = sorted(name for name in directories if not is_excluded(name))
        for name in sorted(names):
            path = Path(parent, name)
            if not is_excluded(name) and path.is_file() and not path.is_symlink():
                yield path, path.stat().st_size


async def _each(items: Sequence[tuple[_T, int]], work: _Work[_T], jobs: int) -> None:
    """Do `work` for every item, `jobs` at a time."""
    rest = iter(items)

    async def worker() -> None:
        for item, size in rest:
            await work(item, size)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(jobs, len(items))):
                group.create_task(worker())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


def _note_failure(transfer: Transfer, name: str, error: Exception) -> None:
    """One file's failure is noted; one of the service ends the whole.

    Raises:
        ServiceError: the next file would fare no better.
    """
    if isinstance(error, ServiceError) and error.status not in _ONE_FILES_STATUS:
        raise error
    transfer.failed.append((_printable(name), str(error)))


def _target(directory: Path, name: str) -> Path:
    """Where a key goes, which is always inside `directory`.

    Raises:
        TransferError: the key is no relative path of a file.
    """
    path = PurePosixPath(name)
    inside = not path.is_absolute() and ".." not in path.parts and path.parts
    if not inside or path.as_posix() != name or "\0" in name:
        raise TransferError("the key is no path of a file")
    target = directory / path
    if not target.parent.resolve().is_relative_to(directory.resolve()):
        raise TransferError("a link leads out of the directory")
    return target


def _write_checked(path: Path, value: bytes, digest: str) -> None:
    if digest and hashlib.sha256(value).hexdigest() != digest:
        raise TransferError("the bytes received are not what the node has")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:100]}.partial")
    try:
        temporary.write_bytes(value)
        if temporary.read_bytes() != value:
            raise TransferError("the file reads back differently")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _printable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()
