"""Where the ranks of a process group meet to speak of a sweep: in the group's store, not in a collective.

A collective needs tensors, with NCCL on a device, in the midst of what is being measured. It has to be
started in the same order on all ranks as everything that is in flight. And of a rank that does not come it
says nothing before the timeout of the group. The store that `init_process_group` has made is beside all
that: it is there with every backend, and knows who has come.
"""

import json
import pickle
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic, sleep
from typing import Any
from weakref import WeakKeyDictionary

import torch.distributed as dist

from fastpurge.python_facts.object_types import reason_of

c10d: Any = getattr(dist, "distributed_c10d", None)  # some builds of torch have none

# A message of more than 8 MiB breaks the connection to the store (MAX_PAYLOAD_LEN in
# torch/csrc/distributed/c10d/TCPStoreLibUvBackend.cpp).
_PART = 4 << 20
_LONGEST_PAUSE = 0.25
_GOODBYE = 10.0  # seconds: the others have only to read


class GroupStore:
    """The ranks of one process group, which meet in rounds.

    Attributes:
        ranks: all of them, as global ranks, in the order of the group.
        rank: the global rank of this process.

    """

    def __init__(self, group: "dist.ProcessGroup") -> None:
        self.ranks = tuple(dist.get_process_group_ranks(group))
        self.rank = dist.get_rank()
        self._store: Any = c10d.PrefixStore("fastpurge", c10d._get_process_group_store(group))
        self._number = 0
        self._turn = threading.Lock()

    @contextmanager
    def round(self, timeout: float) -> Iterator["Round"]:
        """Take part in a round that is still open: who comes too late for one opens the next.

        What is raised within, Ctrl-C for example, is told to the others, who need not wait for this rank.

        Raises:
            RuntimeError: another thread of this process has been in a round for ``timeout`` seconds.

        """
        if not self._turn.acquire(timeout=min(timeout, threading.TIMEOUT_MAX)):
            raise RuntimeError(f"another sweep of this process group has been under way for {timeout:g} s")
        try:
            self._number += 1
            this = Round(self, timeout)
            try:
                yield this
            except BaseException as error:
                this.leave(reason_of(error))
                raise
            this.end()
        finally:
            self._turn.release()

    def next_open(self) -> Any:
        """The part of the store where the round is held that is open now."""
        while self._store.check([f"{self._number}/0/closed"]):
            self._number += 1
        return c10d.PrefixStore(str(self._number), self._store)


class Round:
    """Some exchanges, one after the other, of the ranks that meet."""

    def __init__(self, group_store: GroupStore, timeout: float) -> None:
        self._ranks, self._rank = group_store.ranks, group_store.rank
        self._find_store = group_store.next_open
        self._store: Any = None
        self._timeout = timeout
        self._said = self._closed = 0
        self._heard: list[int] = []
        self._keys = ["left"]

    def exchange(self, message: object) -> tuple[dict[int, Any], dict[int, str]]:
        """Tell all ranks something and hear what they tell, each by its rank, in the order of the group.

        Returns what was heard, and of the other ranks why nothing was. All who can reach the store get the
        same: the first who has waited for ``timeout`` seconds closes the exchange for all.
        """
        try:
            if self._store is None:
                self._store = self._find_store()
            heard = self._exchange(message)
        except dist.DistError as error:
            others = (rank for rank in self._ranks if rank != self._rank)
            reason = f"out of reach: the process that holds the group's store is gone ({error})"
            return {self._rank: message}, dict.fromkeys(others, reason)
        return heard, {rank: "not heard of in time" for rank in self._ranks if rank not in heard}

    def _exchange(self, message: object) -> dict[int, Any]:
        at = self._say(message)
        if not _wait(lambda: self._store.check([f"{at}/closed"]), self._timeout):
            self._close(at, (rank for rank in self._ranks if self._store.check([f"{at}/{rank}"])))
        self._heard = json.loads(self._store.get(f"{at}/closed"))
        self._closed += 1
        return {rank: self._get(f"{at}/{rank}") for rank in self._heard}

    def _say(self, message: object) -> int:
        """Tell all ranks something, in the next exchange. Returns its number."""
        at = self._said
        self._keys += [f"{at}/count", f"{at}/closed"]
        self._put(f"{at}/{self._rank}", message)
        everybody_has = self._store.add(f"{at}/count", 1) == len(self._ranks)
        self._said += 1
        if everybody_has:
            self._close(at, self._ranks)
        return at

    def _close(self, at: int, heard: Iterable[int]) -> bool:
        """Close an exchange for all, unless somebody was faster; whether it was this rank."""
        mine = json.dumps(list(heard)).encode()
        return bool(self._store.compare_set(f"{at}/closed", "", mine.decode()) == mine)

    def _put(self, key: str, message: object) -> None:
        data = zlib.compress(pickle.dumps(message), 1)
        parts = range(0, len(data), _PART)
        for number, start in enumerate(parts):
            self._store.set(f"{key}/{number}", data[start : start + _PART])
        self._store.set(key, str(len(parts)))  # last: who sees it, finds all of the message

    def _get(self, key: str) -> Any:
        parts = [f"{key}/{number}" for number in range(int(self._store.get(key)))]
        self._keys += [key, *parts]
        return pickle.loads(zlib.decompress(b"".join(map(self._store.get, parts))))  # noqa: S301 - of our own

    def end(self) -> None:
        """Part. The first rank, which often holds the store, stays until all have read, and tidies up."""
        with suppress(dist.DistError):
            if self._rank in self._heard:
                self._store.add("left", 1)
            if self._rank == min(self._ranks) and _wait(self._all_have_left, _GOODBYE):
                # A round that somebody has missed is left there for them to see that it is closed.
                for key in self._keys if len(self._heard) == len(self._ranks) else ():
                    self._store.delete_key(key)

    def leave(self, reason: str) -> None:
        """Take no further part, and say why, so that nobody waits for this rank."""
        if self._store is None:
            return
        with suppress(dist.DistError):
            if self._said > self._closed:  # what was said can be taken back until somebody has heard it
                others = (rank for rank in self._ranks if rank != self._rank)
                at = self._said - 1
                if self._close(at, (rank for rank in others if self._store.check([f"{at}/{rank}"]))):
                    return
            self._say(reason)
            self._store.add("left", 1)

    def _all_have_left(self) -> bool:
        return bool(self._store.add("left", 0) >= len(self._heard))


def _wait(done: Callable[[], bool], timeout: float) -> bool:
    """Ask again and again, less and less often, until it is done or time is up.

    `Store.wait` would log a warning each time its time is up, keep other threads from the store, and not
    let Ctrl-C through.
    """
    deadline, pause = monotonic() + timeout, 0.001
    while not done():
        if (left := deadline - monotonic()) <= 0:
            return False
        sleep(min(pause, left))
        pause = min(2 * pause, _LONGEST_PAUSE)
    return True


_group_stores: WeakKeyDictionary[Any, GroupStore] = WeakKeyDictionary()


def group_store_of(group: Any) -> GroupStore:
    """Where the ranks of a group meet; ``None`` is the default group.

    Raises:
        TypeError: it is no process group.
        ValueError: this process is not in it, or it has been destroyed.
        RuntimeError: there is no default group: `init_process_group` has not been called.

    """
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "torch.distributed is not initialized: call init_process_group on every rank first"
        )
    if group is None:
        group = dist.group.WORLD
    if not isinstance(group, dist.ProcessGroup):
        if group == dist.GroupMember.NON_GROUP_MEMBER:  # what `new_group` gives to those outside
            raise ValueError(f"group: this process, rank {dist.get_rank()}, is not a member of it")
        raise TypeError(f"group must be a torch.distributed.ProcessGroup or None, not {type(group).__name__}")
    if group not in c10d._world.pg_map:
        raise ValueError("group is no process group that torch.distributed knows: was it destroyed?")
    return _group_stores.setdefault(group, GroupStore(group))
