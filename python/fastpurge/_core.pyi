"""The Rust core: walks over the objects of the interpreter. It knows objects and types, never torch."""

from collections.abc import Callable, Iterable
from types import CodeType, FrameType
from typing import Any, Literal, final

__all__ = [
    "IdSet",
    "Libraries",
    "RunningCode",
    "Snapshot",
    "c_callbacks",
    "closure",
    "exchange",
    "frame_locals",
    "library_globals",
    "nearest_owners",
    "object_stream",
    "reachable_targets",
    "read_unless_inside",
    "referrer_paths",
    "scan",
    "snapshot",
    "trim_heap",
]

@final
class IdSet:
    """A set of objects by identity.

    No ``__eq__`` and no ``__hash__`` is called. The set has no references to its objects: the caller must
    keep them alive, because the address of a freed object may be reused.
    """

    def __new__(cls, objects: Iterable[object] | None = None, /) -> IdSet: ...
    def add(self, object: object, /) -> None: ...
    def update(self, objects: Iterable[object], /) -> None: ...
    def discard(self, object: object, /) -> None: ...
    def __contains__(self, object: object, /) -> bool: ...
    def __len__(self, /) -> int: ...

@final
class Libraries:
    """Which modules are libraries: by their folders, or by their names if they have no file.

    ``folders`` are pairs of a folder and whether the files in it are a library's. The deepest folder decides;
    files outside all folders are the program's. ``builtin_names`` are the top-level modules without a file
    that are libraries; a name that ends in ``*`` stands for all names with that prefix.
    """

    def __new__(cls, folders: tuple[tuple[str, bool], ...], builtin_names: tuple[str, ...]) -> Libraries: ...
    def is_library(self, name: str, /) -> bool:
        """Whether the module of this name (as in ``sys.modules``) is a library's."""
    def program_modules(self, names: list[str], /) -> list[str]:
        """Those of the given module names that are no library's."""

@final
class RunningCode:
    """How a snapshot finds the objects that running code and C code use.

    A snapshot starts at the objects with external references, and follows their references:

    ``containers`` are followed, by exact type, and so are instances of subtypes of ``container_bases`` that
    are the program's. Instances of ``kept_whole`` keep everything they reach. ``generator_types`` are the
    types whose instances have a frame of their own (generators and the like), each with the name of the
    attribute that is true while one runs. ``scheduled`` are types whose instances are in use whatever
    references them, each with a C function that returns whether an instance is done, and so no longer in use,
    or with ``None``. They keep everything they reach, or are followed if they are ``root_objects`` too.

    ``root_objects`` are types, and names of packages, whose instances are a boundary. All other instances of
    a library's class keep everything they reach; without ``root_objects`` they do not.
    """

    def __new__(
        cls,
        *,
        containers: tuple[type, ...] | None = None,
        container_bases: tuple[type, ...] | None = None,
        kept_whole: tuple[type, ...] | None = None,
        generator_types: tuple[tuple[type, str], ...] | None = None,
        scheduled: tuple[tuple[type, Callable[[Any], bool] | None], ...] | None = None,
        root_objects: tuple[tuple[type, ...], tuple[str, ...]] | None = None,
    ) -> RunningCode: ...

@final
class Snapshot:
    """Which objects were kept and which were not, at one moment."""

    @property
    def kept(self) -> list[Any]:
        """The objects in the closure that are of a reported type, in the order they were reached."""
    @property
    def candidates(self) -> list[Any]:
        """The objects of a scanned type outside the closure, in heap order."""
    @property
    def spared(self) -> list[Any]:
        """The objects of a scanned type that only ``guarded`` reaches, in heap order."""
    @property
    def externally_referenced(self) -> list[Any]:
        """The objects with external references that are of a scanned type or of one in ``kept_whole``.

        What they reach is no candidate. Empty without ``running_code``.
        """
    @property
    def kept_by_running_code(self) -> list[Any]:
        """The objects of a reported type that only external references reach. They are not in ``kept``."""
    @property
    def list_being_sorted(self) -> bool:
        """Whether a list in the closure was being sorted, so that its items are missing from the closure."""
    @property
    def objects_scanned(self) -> int:
        """How many objects the collector tracked."""
    @property
    def closure(self) -> IdSet:
        """Everything in the closure that can itself refer to other objects."""

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
    self_referenced: IdSet | None = None,
) -> Snapshot:
    """Take the closure of the roots and scan the heap for objects outside it, at one moment.

    ``named`` are roots that are traversed even if they are a boundary. ``roots`` are traversed like any
    object of the closure, and after them ``guarded``. Objects in ``boundary`` count as reached, and are
    traversed only if they are in ``named``. Objects in ``self_referenced`` have one reference to themselves,
    which is not external.

    No Python code runs between closure and scan, in this thread or any other: types are compared by address
    and MRO, and no method of an object is called.

    Raises ``MemoryError`` if the sets do not fit in memory.
    """

def c_callbacks(
    *,
    function_type: type,
    method_type: type,
    other_types: tuple[type, ...],
    generator_types: tuple[tuple[type, str], ...] | None = None,
) -> list[Any]:
    """The functions, bound methods and instances of ``other_types`` that C code references.

    ``function_type`` and ``method_type`` are the types of functions and of bound methods. Functions that run
    now, and functions without values, in a closure or as defaults, are left out. ``generator_types`` are as
    for ``RunningCode``.
    """

def read_unless_inside(
    reads: list[tuple[Callable[[Any], Any], Any]],
    *,
    unless_inside: CodeType | None = None,
    then: list[Callable[[Any], Any]] | None = None,
) -> list[Any] | None:
    """Call C functions, each with one argument, unless another thread runs the code object ``unless_inside``.

    No other thread runs between the first call and the last. ``reads`` are pairs of a function and its
    argument. Returns the results in order; a result that is a list or a tuple is replaced by its items. With
    ``then``, each of these is replaced by what the functions in ``then`` return for it. Results that are
    ``None`` are left out, and so are calls that raise ``RuntimeError``; other exceptions are raised.

    Returns ``None``, and calls nothing, if another thread runs the code object, directly or further up its
    stack.
    """

def exchange(
    named: tuple[object, ...],
    roots: list[Any],
    objects: list[Any],
    replacements: list[Any],
    *,
    scan_for: tuple[type, ...],
    libraries: Libraries,
    running_code: RunningCode,
    self_referenced: IdSet,
    count_owners: Callable[[Any], int],
    spare_external: bool,
    set_class: Callable[[Any, type], object],
    implementation: tuple[type, Callable[[Any, Any], object]],
) -> list[tuple[int, BaseException | None]]:
    """Exchange class, attributes and implementation of each object with those of its replacement.

    Takes a last snapshot, and exchanges all objects if all of them are still unprotected. No other thread
    runs between the two. An object stays in ``self_referenced`` only while ``count_owners``, a C function,
    returns more than 1 for it. ``implementation`` is a type, and the C function that exchanges the C part of
    two of its instances. ``set_class`` must be a C function too. Externally referenced objects are protected
    if ``spare_external``, and otherwise only if another thread runs.

    Returns the objects that were refused, each as its index and the exception, or ``None`` if it is in use.
    If there are any, no object was changed.
    """

def closure(named: tuple[object, ...], *, libraries: Libraries) -> IdSet:
    """Everything reachable from the roots that can itself refer to other objects."""

def reachable_targets(
    roots: tuple[object, ...], targets: tuple[object, ...], *, libraries: Libraries
) -> list[list[int]]:
    """For each root, the indices of the targets in its closure. One walk over the heap serves all roots."""

def scan(types: tuple[type, ...], /) -> list[Any]:
    """The objects of the given types (or of subtypes) that the collector tracks."""

def library_globals(
    types: tuple[type, ...],
    *,
    libraries: Libraries,
    containers: tuple[type, ...],
    depth: int,
    wrappers: tuple[type, ...] | None = None,
    caches: tuple[type, ...] | None = None,
    root_objects: tuple[tuple[type, ...], tuple[str, ...]] | None = None,
    modules: set[str] | None = None,
) -> list[tuple[Any, str]]:
    """The instances of the types that libraries reference at module and class level, down to a depth.

    Each comes with the name of a module that leads to it. ``modules`` limits the search to the libraries
    among the modules of these names.

    ``containers`` are followed, by exact type. Each is one step of ``depth``, and so is an instance of a
    library's class, of which there may be one on the way. ``wrappers`` are followed without a step: functions
    and what decorators make of them. So are ``caches``, which have dicts of results by arguments: the results
    are followed, the arguments are the caller's.

    What a wrapper leads to is needed when it is called, and is followed to any depth, up to ``root_objects``:
    types, and names of packages, whose instances lead to more than a call needs. A root object that a module
    or class references is followed, but the library does not call what it leads to. Instances of the
    program's classes that a wrapper leads to are results themselves, and so are those that can be called. A
    class counts if its own module is a library's.
    """

def object_stream() -> Literal["visitor", "list"]:
    """How this interpreter lists its objects: ``"visitor"`` (by a C callback) or ``"list"``."""

def trim_heap() -> str | None:
    """Have the C allocator return free memory to the operating system.

    Returns the name of the function that was called, or ``None`` if the platform has none.
    """

def referrer_paths(
    targets: tuple[object, ...],
    roots: list[Any],
    *,
    ignored_owners: list[Any] | None = None,
    hidden: list[tuple[Any, Any]] | None = None,
    search_unreachable: bool = False,
) -> list[tuple[Literal["root", "external", "cycle", "unreferenced"], list[Any]]]:
    """For each target ``("root", [...])``, with the objects on a shortest path from a root, both included.

    If no root reaches it: ``("external", [...])``, from an object with an external reference; ``("cycle",
    [...])``, from an object of a cycle that nothing else references; or ``("unreferenced", [])``. These take
    two more walks over the heap, which are made only if ``search_unreachable``; otherwise the answer is
    ``("unreferenced", [])``.

    References from ``ignored_owners`` to a target do not count. ``hidden`` are pairs of an object and one
    that it refers to where ``tp_traverse`` does not show it.
    """

def nearest_owners(
    types: tuple[type, ...],
    roots: list[Any],
    *,
    through: tuple[type, ...],
    hidden: list[tuple[Any, Any]] | None = None,
    search_unreachable: bool = True,
) -> list[tuple[Any, int | None, type | None, bool]]:
    """Every instance of the types (or of subtypes) that is tracked, or referenced by what is, and its owner.

    Each comes with the index of the root that reaches it by the shortest path, the type of its nearest owner
    on that path, and whether it is garbage. An owner of a type in ``through``, by exact type, is passed over
    for its own owner. An instance that no root reaches is garbage unless it has, or is reachable from, an
    external reference; such instances are searched for only if ``search_unreachable``.
    """

def frame_locals(frame: FrameType, /) -> dict[str, Any]:
    """The locals of a frame by name, in a new dict. The frame gets no new references.

    The dict is empty if the locals are in a namespace that is no dict, and before Python 3.12 if a debugger
    may be tracing the function.
    """
