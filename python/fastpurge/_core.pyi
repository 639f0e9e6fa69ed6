"""The Rust core: what the package asks of the interpreter; it knows objects and types, never torch."""

from collections.abc import Iterable, Sequence
from os import PathLike
from typing import Any, Literal, final

__all__ = [
    "IdSet",
    "Libraries",
    "Outside",
    "Snapshot",
    "closure",
    "library_state",
    "object_stream",
    "scan",
    "snapshot",
    "trim_heap",
]

@final
class IdSet:
    """A set of object identities.

    Membership is by identity alone: no ``__eq__`` and no ``__hash__`` is run. The set holds no
    references, so it is for the caller to keep alive what it asks about.
    """

    def __new__(cls, objects: Iterable[object] | None = None, /) -> IdSet: ...
    def add(self, object: object, /) -> None: ...
    def update(self, objects: Iterable[object], /) -> None: ...
    def discard(self, object: object, /) -> None: ...
    def __contains__(self, object: object, /) -> bool: ...
    def __len__(self, /) -> int: ...

@final
class Libraries:
    """What counts as a library: folders, and the names of modules that have no file.

    ``folders`` are pairs of a folder and whether what lies in it is a library; the deepest folder
    decides, and outside all of them is the program. ``builtin_names`` are the top-level modules
    without a file that are libraries all the same.
    """

    def __new__(
        cls, folders: Sequence[tuple[str | PathLike[str], bool]], builtin_names: Sequence[str]
    ) -> Libraries: ...
    def is_library(self, name: str, /) -> bool:
        """Whether the module of this name (as in ``sys.modules``) is a library."""

@final
class Outside:
    """How to look for what is held from where the collector cannot see: running code, C code.

    ``containers`` are looked through, by exact type, and ``container_bases`` with their subtypes.
    Instances of ``whole`` that are held keep everything they reach.
    ``executing`` are the types (generators and the like) whose frame is their own, each with the
    attribute that says that it runs now.
    """

    def __new__(
        cls,
        containers: Sequence[type],
        container_bases: Sequence[type],
        whole: Sequence[type],
        executing: Sequence[tuple[type, str]],
    ) -> Outside: ...

@final
class Snapshot:
    """What was kept and what was not, at one moment."""

    @property
    def kept(self) -> list[Any]:
        """The objects in the closure whose type was to be reported, in the order they were met."""
    @property
    def candidates(self) -> list[Any]:
        """The objects of a scanned type outside the closure, in heap order."""
    @property
    def held(self) -> list[Any]:
        """What is held from outside the collector's sight, of a scanned type or one that is kept whole.

        What they reach is no candidate. Empty if not asked for.
        """
    @property
    def running(self) -> list[Any]:
        """What only those reach, of a reported type; it is not in ``kept``."""
    @property
    def objects_scanned(self) -> int:
        """How many objects the collector tracked."""
    @property
    def closure_size(self) -> int:
        """How many objects the closure holds."""

def snapshot(
    named: tuple[object, ...],
    roots: list[Any],
    *,
    scan_for: tuple[type, ...],
    report: tuple[type, ...],
    libraries: Libraries,
    outside: Outside | None = None,
    self_held: IdSet | None = None,
) -> Snapshot:
    """Take the closure of the roots and scan the heap for what lies outside it, in one go.

    ``named`` are entered whatever they are; ``roots`` like anything the closure meets. No Python code
    runs between closure and scan, in this thread or any other, and no object is asked anything: types
    are compared by address and MRO. Objects in ``self_held`` hold one reference to themselves.

    Raises ``MemoryError`` if the sets do not fit in memory.
    """

def closure(named: tuple[object, ...], *, libraries: Libraries) -> IdSet:
    """Everything reachable from the roots that can itself hold a reference."""

def scan(types: tuple[type, ...], /) -> list[Any]:
    """The objects of the given types (or of subtypes) that the collector tracks."""

def library_state(
    types: Sequence[type], *, libraries: Libraries, containers: Sequence[type], depth: int
) -> list[Any]:
    """What libraries keep at module and class level: instances of the types, in containers to a depth.

    ``containers`` are looked through, by exact type. A class counts if its own module is a library's.
    """

def object_stream() -> Literal["visitor", "list"]:
    """Which object stream this interpreter gives: ``"visitor"`` (nothing is built) or ``"list"``."""

def trim_heap() -> str | None:
    """Ask the C allocator to return free memory, and say what was asked.

    Returns the name of the mechanism, or ``None`` where the platform has none.
    """
