"""How a bug is planted in the core and taken out again."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, NamedTuple


class Patch:
    """Attributes set for a while."""

    def __init__(self) -> None:
        self._undo: list[tuple[object, str, Any]] = []

    def set(self, owner: object, name: str, value: Any) -> None:
        """Replace an attribute of a class or module."""
        before = owner.__dict__[name]
        self._undo.append((owner, name, before))
        setattr(owner, name, value)

    def undo(self) -> None:
        """Put everything back."""
        while self._undo:
            owner, name, before = self._undo.pop()
            setattr(owner, name, before)


class Mutant(NamedTuple):
    """One bug; its docstring says which rule is broken.

    `dialogue`: the scripted schedule that must catch it, where one does.
    `simulated`: whether the simulator must.
    `replicated`: whether `rafthttp.testing.simulate` must, with a state machine in sessions.
    """

    name: str
    plant: Callable[[Patch], None]
    dialogue: str | None
    simulated: bool
    replicated: bool = False

    @property
    def rule(self) -> str:
        """What it breaks."""
        return (self.plant.__doc__ or "").strip()


@contextmanager
def planted(mutant: Mutant) -> Generator[None]:
    """The core with this bug, inside the block."""
    patch = Patch()
    mutant.plant(patch)
    try:
        yield
    finally:
        patch.undo()
