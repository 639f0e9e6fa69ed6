"""An all-gather of Python objects through the store of a process group, instead of a collective.

A collective needs tensors, with NCCL on a device, which would change the memory that is measured. All ranks
have to start it in the same order as the other collectives in flight. And if a rank is missing, it does not
name that rank, and waits for the timeout of the group. The store of `init_process_group` has none of these
limits: every backend has one, and it shows which ranks have posted.
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
_CLEANUP_TIMEOUT = 10.0  # seconds for the other ranks to read the last messages


class GroupStore:
    """The store of one process group, in which its ranks exchange messages in rounds.

    Attributes:
        ranks: the global ranks of the group, in its order.
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
        """Take part in the open round. A rank that is too late for a round opens the next one.

        An exception in the block, such as Ctrl-C, is posted to the other ranks, so that they do not wait.

        Raises:
            RuntimeError: another thread of this process has been in a round for ``timeout`` seconds.

        """
        if not self._turn.acquire(timeout=min(timeout, threading.TIMEOUT_MAX)):
            raise RuntimeError(f"another sweep of this process group has been running for {timeout:g} s")
        try:
            self._number += 1
            this = Round(self, timeout)
            try:
                yield this
            except BaseException as error:
                this.abort(reason_of(error))
                raise
            this.finish()
        finally:
            self._turn.release()

    def store_of_open_round(self) -> Any:
        """The part of the store for the round that is open now."""
        while self._store.check([f"{self._number}/0/closed"]):
            self._number += 1
        return c10d.PrefixStore(str(self._number), self._store)


class Round:
    """A sequence of exchanges between the ranks of a group."""

    def __init__(self, group_store: GroupStore, timeout: float) -> None:
        self._ranks, self._rank = group_store.ranks, group_store.rank
        self._open_store = group_store.store_of_open_round
        self._store: Any = None
        self._timeout = timeout
        self._posted = self._closed = 0
        self._received: list[int] = []
        self._keys = ["left"]

    def all_gather(self, message: object) -> tuple[dict[int, Any], dict[int, str]]:
        """Post a message to all ranks, and receive theirs.

        Returns the messages by global rank, in the order of the group, and for each missing rank a reason.
        All ranks that can reach the store get the same: the first that has waited for ``timeout`` seconds
        closes the exchange for all.
        """
        try:
            if self._store is None:
                self._store = self._open_store()
            received = self._gather(message)
        except dist.DistError as error:
            others = (rank for rank in self._ranks if rank != self._rank)
            reason = f"out of reach: the process with the group's store has ended ({error})"
            return {self._rank: message}, dict.fromkeys(others, reason)
        return received, {rank: "no message in time" for rank in self._ranks if rank not in received}

    def _gather(self, message: object) -> dict[int, Any]:
        at = self._post(message)
        if not _wait(lambda: self._store.check([f"{at}/closed"]), self._timeout):
            self._close(at, (rank for rank in self._ranks if self._store.check([f"{at}/{rank}"])))
        self._received = json.loads(self._store.get(f"{at}/closed"))
        self._closed += 1
        return {rank: self._get(f"{at}/{rank}") for rank in self._received}

    def _post(self, message: object) -> int:
        """Post a message in the next exchange. Returns the number of the exchange."""
        at = self._posted
        self._keys += [f"{at}/count", f"{at}/closed"]
        self._put(f"{at}/{self._rank}", message)
        all_have = self._store.add(f"{at}/count", 1) == len(self._ranks)
        self._posted += 1
        if all_have:
            self._close(at, self._ranks)
        return at

    def _close(self, at: int, received: Iterable[int]) -> bool:
        """Close an exchange for all ranks. Returns whether this rank did it, and not a faster one."""
        mine = json.dumps(list(received)).encode()
        return bool(self._store.compare_set(f"{at}/closed", "", mine.decode()) == mine)

    def _put(self, key: str, message: object) -> None:
        data = zlib.compress(pickle.dumps(message), 1)
        parts = range(0, len(data), _PART)
        for number, start in enumerate(parts):
            self._store.set(f"{key}/{number}", data[start : start + _PART])
        self._store.set(key, str(len(parts)))  # last, so that a reader that sees it finds all parts

    def _get(self, key: str) -> Any:
        parts = [f"{key}/{number}" for number in range(int(self._store.get(key)))]
        self._keys += [key, *parts]
        return pickle.loads(zlib.decompress(b"".join(map(self._store.get, parts))))  # noqa: S301 - of our own

    def finish(self) -> None:
        """End the round. The first rank, which often has the store, waits for all and deletes the keys."""
        with suppress(dist.DistError):
            if self._rank in self._received:
                self._store.add("left", 1)
            if self._rank == min(self._ranks) and _wait(self._all_are_done, _CLEANUP_TIMEOUT):
                # The keys of a round that a rank has missed stay, so that it sees that the round is closed.
                for key in self._keys if len(self._received) == len(self._ranks) else ():
                    self._store.delete_key(key)

    def abort(self, reason: str) -> None:
        """Leave the round, and post the reason, so that no rank waits for this one."""
        if self._store is None:
            return
        with suppress(dist.DistError):
            if self._posted > self._closed:  # a message counts as not posted if no rank has received it
                others = (rank for rank in self._ranks if rank != self._rank)
                at = self._posted - 1
                if self._close(at, (rank for rank in others if self._store.check([f"{at}/{rank}"]))):
                    return
            self._post(reason)
            self._store.add("left", 1)

    def _all_are_done(self) -> bool:
        return bool(self._store.add("left", 0) >= len(self._received))


def _wait(done: Callable[[], bool], timeout: float) -> bool:
    """Poll at growing intervals until done, or until the timeout. Returns whether it is done.

    `Store.wait` would log a warning at each timeout, block other threads, and block Ctrl-C.
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
    """The store of a group; ``None`` is the default group.

    Raises:
        TypeError: ``group`` is not a process group.
        ValueError: this process is not a member, or the group has been destroyed.
        RuntimeError: there is no default group, because `init_process_group` has not been called.

    """
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "torch.distributed is not initialized: call init_process_group on every rank first"
        )
    if group is None:
        group = dist.group.WORLD
    if not isinstance(group, dist.ProcessGroup):
        if group == dist.GroupMember.NON_GROUP_MEMBER:  # `new_group` returns it to ranks outside the group
            raise ValueError(f"group: this process, rank {dist.get_rank()}, is not a member of it")
        raise TypeError(f"group must be a torch.distributed.ProcessGroup or None, not {type(group).__name__}")
    if group not in c10d._world.pg_map:
        raise ValueError("group is not known to torch.distributed: was it destroyed?")
    return _group_stores.setdefault(group, GroupStore(group))
