"""The Rust core: what the package asks of the interpreter; it knows objects and types, never torch."""

from collections.abc import Callable, Iterable
from types import CodeType, FrameType
from typing import Any, Literal, final

__all__ = [
    "IdSet",
    "Libraries",
    "RunningCode",
    "Snapshot",
    "callbacks",
    "closure",
    "exchange",
    "frame_locals",
    "holdings",
    "library_state",
    "object_stream",
    "paths",
    "reached",
    "read_unless_inside",
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
    without a file that are libraries all the same; one that ends in ``*`` stands for all that begin so.
    """

    def __new__(cls, folders: tuple[tuple[str, bool], ...], builtin_names: tuple[str, ...]) -> Libraries: ...
    def is_library(self, name: str, /) -> bool:
        """Whether the module of this name (as in ``sys.modules``) is a library."""
    def of_the_program(self, names: list[str], /) -> list[str]:
        """Those of some modules, by their names, that are of no library."""

@final
class RunningCode:
    """How to find what running code and C code hold, where the collector cannot see it.

    ``containers`` are looked through, by exact type, and ``container_bases`` with the subtypes that are the
    program's. Instances of ``whole`` that are held keep everything they reach.
    ``executing`` are the types (generators and the like) whose frame is their own, each with the
    attribute that says that it runs now. ``scheduled`` are types whose instances are in use whoever holds
    them: each with a function in C that says of one whether it is done, and is in use no more, or without.
    They keep everything they reach, or are looked through if they are ``roots`` too.

    ``roots`` are types, and names of packages, whose instances lead to what is not in use: these are a
    boundary. All other objects of a library's class that are held keep everything they reach; if there are no
    ``roots``, they do not.
    """

    def __new__(
        cls,
        *,
        containers: tuple[type, ...] | None = None,
        container_bases: tuple[type, ...] | None = None,
        whole: tuple[type, ...] | None = None,
        executing: tuple[tuple[type, str], ...] | None = None,
        scheduled: tuple[tuple[type, Callable[[Any], bool] | None], ...] | None = None,
        roots: tuple[tuple[type, ...], tuple[str, ...]] | None = None,
    ) -> RunningCode: ...

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
    def spared(self) -> list[Any]:
        """The objects of a scanned type that only what was guarded leads to, in heap order."""
    @property
    def held(self) -> list[Any]:
        """What is held from outside the collector's sight, of a scanned type or one that is kept whole.

        What they reach is no candidate. Empty if not asked for.
        """
    @property
    def running(self) -> list[Any]:
        """What only those reach, of a reported type; it is not in ``kept``."""
    @property
    def sorting(self) -> bool:
        """Whether a list in the closure was being sorted: then the closure leaves out what is in it."""
    @property
    def objects_scanned(self) -> int:
        """How many objects the collector tracked."""
    @property
    def closure(self) -> IdSet:
        """Everything in the closure that can itself hold a reference."""

def snapshot(
    named: tuple[object, ...],
    roots: list[Any],
    *,
    scan_for: tuple[type, ...],
    report: tuple[type, ...],
    libraries: Libraries,
    guarded: list[Any] | None = None,
    boundary: list[Any] | None = None,
    running_code: RunningCode | None = None,
    self_held: IdSet | None = None,
) -> Snapshot:
    """Take the closure of the roots and scan the heap for what lies outside it, in one go.

    ``named`` are entered whatever they are; ``roots`` like anything the closure meets, and after them what is
    ``guarded``. What is in ``boundary`` counts as met, and is entered only if it is named. No Python code
    runs between closure and scan, in this thread or any other, and no object is asked anything: types
    are compared by address and MRO. Objects in ``self_held`` hold one reference to themselves.

    Raises ``MemoryError`` if the sets do not fit in memory.
    """

def callbacks(
    *,
    function: type,
    method: type,
    others: tuple[type, ...],
    executing: tuple[tuple[type, str], ...] | None = None,
) -> list[Any]:
    """What C code is to call: instances of these types that it holds, and that no running function is.

    ``function`` and ``method`` are the types of functions and of bound methods. Functions that hold no
    values, in a closure or as defaults, are left out.
    """

def read_unless_inside(
    reads: list[tuple[Callable[[Any], Any], Any]],
    *,
    unless_inside: CodeType | None = None,
    then: list[Callable[[Any], Any]] | None = None,
) -> list[Any] | None:
    """Call functions in C, each with an object, unless another thread is inside the function of a code.

    All of it is one go, in which no other thread runs. Gives the results, or of what is
    a list or a tuple its items; with ``then``, what these functions give of each. What raises
    ``RuntimeError`` gives nothing, and neither does ``None``. ``None`` for all: another thread is inside,
    and nothing was called.
    """

def exchange(
    named: tuple[object, ...],
    roots: list[Any],
    objects: list[Any],
    blanks: list[Any],
    *,
    scan_for: tuple[type, ...],
    libraries: Libraries,
    running_code: RunningCode,
    self_held: IdSet,
    owners: Callable[[Any], int],
    spare_held: bool,
    set_class: Callable[[Any, type], object],
    implementation: tuple[type, Callable[[Any, Any], object]],
) -> list[tuple[int, BaseException | None]]:
    """Exchange class, attributes and implementation of each object with those of its blank.

    Takes a last snapshot, and if all objects are still unprotected changes them in the same go.
    What is in ``self_held`` counts so as long as ``owners``, a C function, says that it has more than one.
    ``implementation`` is a type, and the function that exchanges what its instances have in C; that
    function and ``set_class`` must be C functions, so that no Python code runs meanwhile. What is held
    from outside is protected if ``spare_held``, and otherwise only if another thread runs.

    Returns those that refused, each as its index with the exception, or ``None`` if it is in use. If
    there are any, all is as before.
    """

def closure(named: tuple[object, ...], *, libraries: Libraries) -> IdSet:
    """Everything reachable from the roots that can itself hold a reference."""

def reached(
    roots: tuple[object, ...], targets: tuple[object, ...], *, libraries: Libraries
) -> list[list[int]]:
    """For each root, the targets in its closure, by their indices; one walk over the heap for all."""

def scan(types: tuple[type, ...], /) -> list[Any]:
    """The objects of the given types (or of subtypes) that the collector tracks."""

def library_state(
    types: tuple[type, ...],
    *,
    libraries: Libraries,
    containers: tuple[type, ...],
    depth: int,
    wrappers: tuple[type, ...] | None = None,
    caches: tuple[type, ...] | None = None,
    roots: tuple[tuple[type, ...], tuple[str, ...]] | None = None,
    modules: set[str] | None = None,
) -> list[tuple[Any, str]]:
    """What libraries keep at module and class level: instances of the types, down to a depth.

    Each with the name of a module that leads to it; of all libraries, or only of the ``modules`` named.

    ``containers`` are looked through, by exact type, each a step deeper, and one instance of a library's own
    class may stand on the way. ``wrappers`` are too, and are no step: functions, what decorators make of
    them, and ``caches``, whose dicts hold results by arguments: results are state, arguments are the
    caller's.

    What a wrapper leads to is needed when it is called, at any depth: as far as ``roots``, types and names of
    packages whose instances lead to what no call needs. Where a module or class holds such an instance, it
    is looked through as what the library does not call. An instance of another class that a wrapper leads to
    is itself among the results, and so is one that can be called. A class counts if its own module is a
    library's.
    """

def object_stream() -> Literal["visitor", "list"]:
    """Which object stream this interpreter gives: ``"visitor"`` (nothing is built) or ``"list"``."""

def trim_heap() -> str | None:
    """Ask the C allocator to return free memory, and say what was asked.

    Returns the name of the mechanism, or ``None`` where the platform has none.
    """

def paths(
    targets: tuple[object, ...],
    roots: list[Any],
    *,
    besides: list[Any] | None = None,
    hidden: list[tuple[Any, Any]] | None = None,
    strays: bool = False,
) -> list[tuple[Literal["root", "outside", "cycle", "nothing"], list[Any]]]:
    """For each target, how it is held: ``("root", [...])``, with the objects on a shortest way from a root.

    If no root leads to it: ``("outside", [...])``, from something that more is held of than the heap
    accounts for; ``("cycle", [...])``, from something that it leads back to; or ``("nothing", [])``.
    For these two walks over the heap are made, and only if ``strays``; otherwise it is ``("nothing", [])``.

    ``besides`` are holders whose own references to a target do not count. ``hidden`` are pairs of a holder
    and what it holds where ``tp_traverse`` does not show it.
    """

def holdings(
    types: tuple[type, ...],
    roots: list[Any],
    *,
    through: tuple[type, ...],
    hidden: list[tuple[Any, Any]] | None = None,
    strays: bool = True,
) -> list[tuple[Any, int | None, type | None, bool]]:
    """Every instance of the types (or of subtypes), tracked or held by what is, and who holds it.

    Each with the index of the root that leads to it by the shortest way, the type of its nearest holder on
    that way, and whether it is garbage. A holder of a type in ``through``, by exact type, is passed over for
    the one that holds it. What no root leads to is garbage, unless it is held from outside the heap; it is
    looked for only if ``strays``.
    """

def frame_locals(frame: FrameType, /) -> dict[str, Any]:
    """The locals of a frame by name, in a dict of their own; the frame holds no more than before.

    None if they are in something else than a dict, and before 3.12 none of a function that a debugger may be
    looking at.
    """
