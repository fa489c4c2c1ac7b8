"""Progress on a terminal and elsewhere, and sizes for people."""

import io

import pytest
from rich.console import Console

from rafthttp.cli.output import TransferProgress, size_text
from rafthttp.kv.files import Transfer


def test_a_terminal_gets_a_bar() -> None:
    screen = io.StringIO()
    progress = TransferProgress("import", Console(file=screen, force_terminal=True, width=80))
    with progress.shown():
        progress(Transfer(files_total=4, files=2, failed=[("f", "why")]))
    assert "import" in screen.getvalue()
    assert "3/4" in screen.getvalue()


def test_elsewhere_there_are_plain_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("rafthttp.cli.output.time.monotonic", lambda: now[0])
    progress = TransferProgress("export", Console(file=io.StringIO()))
    with progress.shown():
        for files in range(10):
            now[0] += 0.5
            progress(Transfer(files_total=10, files=files))
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["export: 3 of 10 files", "export: 7 of 10 files"]


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (31_400_000, "31.4 MB")]
)
def test_sizes(size: int, text: str) -> None:
    assert size_text(size) == text
