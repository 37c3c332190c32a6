"""Errors of optimizers and schedules: who expected what of an argument, and what came."""

from __future__ import annotations

from typing import Any


class Checked:
    """The base of what checks its arguments."""

    @property
    def _name(self) -> str:
        return type(self).__name__

    def require(self, condition: bool, invariant: str, got: Any, cure: str = "") -> None:
        """Raise ValueError unless the condition holds."""
        if not condition:
            raise ValueError(f"{self._name}: expected {invariant}, got {got}. {cure}".rstrip())
