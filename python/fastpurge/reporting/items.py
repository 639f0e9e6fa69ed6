"""One tensor or module in a plan or a report."""

import warnings
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from fastpurge.torch_facts.tensors import TensorFacts


@dataclass(frozen=True, slots=True)
class Item:
    """What a tensor or module was.

    Attributes:
        kind: ``"tensor"`` or ``"module"``.
        type_name: the name of its class.
        shape: its shape; ``None`` for a module, and for a nested tensor, which has no single shape.
        dtype: such as ``"float32"``; ``None`` for a module.
        device: such as ``"cuda:0"``; ``None`` for a module.
        nbytes: the size of its storage in bytes. Items that share memory count it once, at the first of them.
            A module counts 0: its tensors are items of their own.
        reason: why it was skipped, or why it was released without being wiped; ``None`` if neither happened.
        owner: code that leads to it, as `fastpurge.why` gives it. Only the largest released tensors have it.

    """

    kind: Literal["tensor", "module"]
    type_name: str
    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    device: str | None = None
    nbytes: int = 0
    reason: str | None = None
    owner: str | None = None

    @property
    def held_by(self) -> str | None:
        """The old name of ``owner``. Deprecated: the next release removes it."""
        warnings.warn("Item.held_by is deprecated: use Item.owner", DeprecationWarning, stacklevel=2)
        return self.owner

    def describe(self) -> str:
        """The item in words, as in "float32 Tensor of shape (3, 4) on cpu"."""
        if self.dtype is None:
            return f"{self.kind} {self.type_name}"
        shape = "" if self.shape is None else f" of shape {self.shape}"
        return f"{self.dtype} {self.type_name}{shape} on {self.device}"


def tensor_item(facts: TensorFacts) -> Item:
    """The item for a tensor with these facts."""
    return Item("tensor", facts.type_name, facts.shape, facts.dtype, str(facts.device), facts.nbytes)


def as_plain(report: Any) -> dict[str, Any]:
    """A dataclass as plain values, as `dataclasses.asdict`. An item in it has ``owner`` and ``held_by``."""
    return asdict(report, dict_factory=_dict_with_old_key)


_KEYS_OF_ITEM = [field.name for field in fields(Item)]


def _dict_with_old_key(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if [*values] == _KEYS_OF_ITEM:
        values["held_by"] = values["owner"]
    return values
