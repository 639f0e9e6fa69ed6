"""Rules that spare candidates nobody named. Each is small, has a name, and can be switched off."""

from enum import Flag, auto


class Guard(Flag):
    """The guards of a sweep; ``Guard.ALL`` is the default, and they join with ``|``."""

    AUTOGRAD = auto()
    """What the graph of a kept tensor holds: the leaves it feeds, what it saved for backward; and, if a graph
    is kept or in the hands of running code, whatever hooks lead to: C++ holds them, and will call them."""

    LIBRARY = auto()
    """What imported libraries keep at module or class level, with all that they will call leads to; and what
    `torch.compile` has compiled."""

    ALIAS = auto()
    """What stands on the memory of a kept tensor, storage or NumPy array; and, while there is a graph to
    replay (`torch.cuda.CUDAGraph`), whatever is on its kind of device or pinned: what it reads it does not
    say."""

    RUNNING = auto()
    """What running code holds: locals of running functions in any thread, values on their stacks, exceptions
    being handled, context variables, and work that waits to be done; directly, or through plain containers,
    closures and iterators. An object of a library's class that it holds so is in use with everything it leads
    to; one of the program's own class is not looked into, unless it is a context manager. So is what
    else the collector cannot see, such as a tensor that a NumPy array stands on. Switched off, what is
    held directly is left alone all the same while other threads run: one may be using it right now; and
    with a torch before 2.10."""

    ALL = AUTOGRAD | LIBRARY | ALIAS | RUNNING
    NONE = 0
