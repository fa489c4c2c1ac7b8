"""The error every invariant raises."""

from __future__ import annotations


class InvariantError(AssertionError):
    """A history breaks a property; the text begins with the property's name."""
