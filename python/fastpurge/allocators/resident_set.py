"""The resident set of this process. Works without torch."""

import psutil


def resident_bytes() -> int:
    """The size of the resident set (RSS) of this process, in bytes."""
    resident: int = psutil.Process().memory_info().rss
    return resident
