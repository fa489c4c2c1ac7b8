"""Trees in and out: every file checked, none outside the directory, failures named."""

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from rafthttp.kv.client import KVClient, ServiceError
from rafthttp.kv.files import Transfer, TransferError, export_tree, import_tree, tree_digests

Run = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]


def make_tree(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def test_a_tree_comes_out_as_it_went_in(run: Run, services: Any, tmp_path: Path) -> None:
    files = {f"d{i % 3}/f{i}": bytes([i]) * i * 100 for i in range(40)} | {"e": b"", ".h": b"h"}
    source = make_tree(tmp_path / "in", files)

    async def scenario() -> None:
        seen: list[int] = []

        def on_progress(transfer: Transfer) -> None:
            seen.append(transfer.files)

        async with services() as (member,), KVClient([member.url]) as client:
            for jobs in (1, 8, 100):
                seen.clear()
                done = await import_tree(client, source, jobs=jobs, on_progress=on_progress)
                assert (done.files, done.failed) == (len(files), [])
                assert done.size == sum(map(len, files.values()))
                assert sorted(seen) == list(range(1, len(files) + 1))
                out = tmp_path / f"out{jobs}"
                done = await export_tree(client, out, jobs=jobs)
                assert (done.files, done.failed) == (len(files), [])
                assert tree_digests(out) == tree_digests(source)
                assert not list(out.rglob("*.partial"))

    run(scenario)


def test_links_and_excluded_names_are_left_out(run: Run, services: Any, tmp_path: Path) -> None:
    source = make_tree(tmp_path / "in", {"a": b"1", "skip/b": b"2", "c.pyc": b"3", "d/e": b"4"})
    (source / "link").symlink_to(source / "a")
    (source / "outside").symlink_to("/etc")

    async def scenario() -> None:
        async with services() as (member,), KVClient([member.url]) as client:
            done = await import_tree(client, source, exclude=["skip", "*.pyc"])
            assert done.files == 2
            assert [info.key async for info in client.list()] == ["a", "d/e"]

    run(scenario)


def test_an_export_never_leaves_its_directory(run: Run, services: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "link").symlink_to(tmp_path)
    bad = ["../up", "/root", "a/../../up", "nul\0", "a//b", "./a", "dir/", "link/up", ".."]

    async def scenario() -> None:
        async with services() as (member,), KVClient([member.url]) as client:
            for key in [*bad, "good"]:
                await client.put(key, b"x")
            done = await export_tree(client, out)
            assert done.files == 1
            assert sorted(name for name, _ in done.failed) == sorted(bad)

    run(scenario)
    assert {p.name for p in tmp_path.iterdir()} == {"out"}
    assert {p.name for p in out.iterdir()} == {"link", "good"}


def test_a_key_that_is_a_file_and_a_directory_is_named(
    run: Run, services: Any, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with services() as (member,), KVClient([member.url]) as client:
            await client.put("a", b"x")
            await client.put("a/b", b"y")
            for number in range(8):  # whichever comes first
                done = await export_tree(client, tmp_path / f"out{number}", jobs=2)
                assert done.files == 1
                ((name, reason),) = done.failed
                assert name == "a/b"
                assert "the key 'a' is a file" in reason
                assert "--flat" in reason

    run(scenario)


def test_a_flat_export_holds_every_key_and_comes_back(
    run: Run, services: Any, tmp_path: Path
) -> None:
    long = "long/" * 20
    keys = ["a", "a/b", "a//b", "../up", "/root", ".", "..", "dir/", "nul\0", "ä %2F", "a%2Fb", "~"]
    keys += [long + "x", long + "y"]

    async def scenario() -> None:
        out = tmp_path / "out"
        async with services() as (member,), KVClient([member.url]) as client:
            for key in keys:
                await client.put(f"p/{key}", key.encode())
            done = await export_tree(client, out, prefix="p/", flat=True)
            assert (done.files, done.failed) == (len(keys), [])
            assert {path.is_file() for path in out.iterdir()} == {True}
            done = await import_tree(client, out, prefix="q/", flat=True)
            assert (done.files, done.failed) == (len(keys), [])
            for key in keys:
                assert await client.get(f"q/{key}") == key.encode()
            (out / "x%ff").write_bytes(b"")
            (out / "deep").mkdir()
            (out / "deep" / "z").write_bytes(b"")
            done = await import_tree(client, out, prefix="q/", flat=True)
            assert sorted(name for name, _ in done.failed) == ["deep/z", "x%ff"]

    run(scenario)
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_a_file_over_the_limit_is_named_and_the_others_are_stored(
    run: Run, services: Any, tmp_path: Path
) -> None:
    source = make_tree(tmp_path / "in", {"a": b"1", "big": b"x" * 2000, "z": b"2"})

    async def scenario() -> None:
        config = {"entry_size_bytes_max": 1000}
        async with services(config=config) as (member,), KVClient([member.url]) as client:
            done = await import_tree(client, source)
            assert done.files == 2
            ((name, reason),) = done.failed
            assert name == "big"
            assert "limit" in reason

    run(scenario)


def test_an_import_notices_what_somebody_else_took_away(
    run: Run, services: Any, tmp_path: Path
) -> None:
    source = make_tree(tmp_path / "in", {"a": b"1", "b": b"2"})

    async def scenario() -> None:
        async with services() as (member,), KVClient([member.url]) as client:

            def sabotage(transfer: Transfer) -> None:
                if transfer.files == 2:
                    member.fsm._data.pop("a")

            with pytest.raises(TransferError, match="'a'"):
                await import_tree(client, source, jobs=1, on_progress=sabotage)

    run(scenario)


def test_an_export_notices_bytes_that_are_not_the_nodes(
    run: Run, services: Any, tmp_path: Path
) -> None:
    class Garbling(KVClient):
        async def get_with_digest(
            self, key: str, *, stale: bool = False
        ) -> tuple[bytes, str] | None:
            got = await super().get_with_digest(key, stale=stale)
            assert got is not None
            return got[0] + b"!", got[1]

    async def scenario() -> None:
        async with services() as (member,), Garbling([member.url]) as client:
            await client.put("a", b"x")
            done = await export_tree(client, tmp_path / "out")
            assert done.failed == [("a", "the bytes received are not what the node has")]
            assert not (tmp_path / "out" / "a").exists()

    run(scenario)


def test_a_directory_that_is_none(run: Run, tmp_path: Path) -> None:
    async def scenario() -> None:
        (tmp_path / "file").write_bytes(b"")
        async with KVClient(["http://127.0.0.1:1"]) as client:
            with pytest.raises(TransferError, match="not a directory"):
                await import_tree(client, tmp_path / "file")
            with pytest.raises(TransferError, match="cannot write"):
                await export_tree(client, tmp_path / "file")

    run(scenario)


def test_when_nobody_answers_it_ends_at_the_first_file(run: Run, tmp_path: Path) -> None:
    source = make_tree(tmp_path / "in", {f"f{i}": b"" for i in range(100)})

    async def scenario() -> None:
        tried: list[Transfer] = []
        async with KVClient(["http://127.0.0.1:1"], timeout=0.1) as client:
            with pytest.raises(ServiceError, match="cannot connect"):
                await import_tree(client, source, on_progress=tried.append)
            assert not tried
            with pytest.raises(ServiceError, match="cannot connect"):
                await export_tree(client, tmp_path / "out")

    run(scenario)
