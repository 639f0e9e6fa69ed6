"""One tensor or module, as plans and reports tell of it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Item:
    """One tensor or module, as it was.

    Attributes:
        kind: ``"tensor"`` or ``"module"``.
        type_name: the name of its class.
        shape: its shape; ``None`` for a module, and for a nested tensor, which has no single one.
        dtype: such as ``"float32"``; ``None`` for a module.
        device: such as ``"cuda:0"``; ``None`` for a module.
        nbytes: size of its storage in bytes, counted at the first item that stands on it. A module
            counts 0: its tensors are items of their own.
        reason: why it was skipped, or released and not overwritten although that was asked for; ``None``
            if neither.
        held_by: code that led to it, of the largest that were released, as `fastpurge.why` says it.

    """

    kind: Literal["tensor", "module"]
    type_name: str
    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    device: str | None = None
    nbytes: int = 0
    reason: str | None = None
    held_by: str | None = None

    def describe(self) -> str:
        """Say in words what it is, as in "float32 Tensor of shape (3, 4) on cpu"."""
        if self.dtype is None:
            return f"{self.kind} {self.type_name}"
        shape = "" if self.shape is None else f" of shape {self.shape}"  # a nested tensor has no single one
        return f"{self.dtype} {self.type_name}{shape} on {self.device}"
