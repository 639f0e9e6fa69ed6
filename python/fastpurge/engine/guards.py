"""The guards: rules that spare candidates nobody named."""

from enum import Flag, auto


class Guard(Flag):
    """The guards of a sweep. ``Guard.ALL`` is the default. Join several with ``|``.

    Examples:
        >>> Guard.ALL & ~Guard.ALIAS == Guard.AUTOGRAD | Guard.LIBRARY | Guard.RUNNING
        True

    """

    AUTOGRAD = auto()
    """Spares the autograd graph of a kept tensor: its leaves, and what it saved for backward. If a graph
    is kept or used by running code, also what hooks reach: C++ owns hooks and calls them."""

    LIBRARY = auto()
    """Spares the state of imported libraries: what they keep in globals and classes, and what their callables
    reach. Also what `torch.compile` has compiled."""

    ALIAS = auto()
    """Spares aliases: tensors that share memory with a kept tensor, storage or NumPy array. While a recorded
    graph exists (`torch.cuda.CUDAGraph`), also every tensor on its type of device and every pinned tensor: a
    graph does not tell which addresses it reads."""

    RUNNING = auto()
    """Spares what running code uses: locals of running functions in any thread, values on their stacks,
    exceptions being handled, context variables, and scheduled work; referenced directly, or through plain
    containers, closures and iterators. An object of a library's class that is referenced so is in use with
    everything reachable from it. An object of the program's own class is not entered, unless it is a context
    manager. Objects with external references are in use too, such as a tensor that a NumPy array shares
    memory with. Even without this guard, what running code references directly is skipped while other threads
    run,
    because one of them may be using it; and always with a torch older than 2.10."""

    ALL = AUTOGRAD | LIBRARY | ALIAS | RUNNING
    NONE = 0
