"""A directory tree into the key-value service, and out again.

Knows files and the client; prints nothing (progress is the caller's). A file's key is its path
within the tree, with slashes; empty directories and links are not stored. Keys that are no paths of
files, or of which one would be the other's directory, come out and in *flat*: one directory, each
file named after the whole key, percent-encoded.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Final, TypeVar
from urllib.parse import quote, unquote

from rafthttp import RaftHttpError
from rafthttp.kv.client import KVClient, ServiceError
from rafthttp.kv.commands import CommandError, check_key

# What the service answers because of one key or value.
_ONE_FILES_STATUS: Final = frozenset({400, 413})
_FLAT: Final = "with --flat every key becomes one file, named after the whole key"
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
    flat: bool = False,
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
        flat: each file's name is its key, percent-encoded.
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
            key = prefix + (_unflat(name) if flat else name)
            check_key(key)
            value = await asyncio.to_thread(path.read_bytes)
            await client.put(key, value)
        except (OSError, CommandError, ServiceError, TransferError) as error:
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
    flat: bool = False,
    jobs: int = JOBS_DEFAULT,
    on_progress: Progress = lambda _: None,
) -> Transfer:
    """Write every key with a prefix as a file, checked against the node's SHA-256 and read back.

    Args:
        client: whose timeout is for one file.
        directory: made where missing; files in it are overwritten.
        prefix: is cut off the keys.
        stale: read the asked node's own state instead of the cluster's.
        flat: name each file after its key, percent-encoded, all in `directory`.
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
    names = frozenset(info.key.removeprefix(prefix) for info in keys)

    async def fetch(key: str, size: int) -> None:
        try:
            name = key.removeprefix(prefix)
            path = directory / _flat(name) if flat else _target(directory, name, names)
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


def _flat(name: str) -> str:
    """One file name for any text; `_unflat` gives the text back.

    Raises:
        TransferError: there is no name for an empty text.
    """
    if not name:
        raise TransferError("the key is only the prefix, which leaves no file name")
    return name.replace(".", "%2E") if name in {".", ".."} else quote(name, safe="")


def _unflat(name: str) -> str:
    if "/" in name:
        raise TransferError("a flat export has no directories; import it without --flat")
    try:
        return unquote(name, errors="strict")
    except UnicodeDecodeError:
        raise TransferError("the file's name is no percent-encoded text") from None


def _target(directory: Path, name: str, names: Container[str]) -> Path:
    """Where a key goes, which is always inside `directory`.

    Raises:
        TransferError: the key is no relative path of a file, or another of `names` is a file where
            it needs a directory.
    """
    path = PurePosixPath(name)
    inside = not path.is_absolute() and ".." not in path.parts and path.parts
    if not inside or path.as_posix() != name or "\0" in name:
        raise TransferError(f"the key is no path of a file; {_FLAT}")
    for parent in path.parents:
        if str(parent) in names:
            raise TransferError(
                f"the key {str(parent)!r} is a file, and cannot be this one's directory too;"
                f" {_FLAT}"
            )
    target = directory / path
    if not target.parent.resolve().is_relative_to(directory.resolve()):
        raise TransferError("a link leads out of the directory")
    return target


def _write_checked(path: Path, value: bytes, digest: str) -> None:
    if digest and hashlib.sha256(value).hexdigest() != digest:
        raise TransferError("the bytes received are not what the node has")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two long names may begin alike, and are written side by side.
    temporary = path.with_name(f".{hashlib.sha256(path.name.encode()).hexdigest()[:32]}.partial")
    try:
        temporary.write_bytes(value)
        if temporary.read_bytes() != value:
            raise TransferError("the file reads back differently")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _printable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()
