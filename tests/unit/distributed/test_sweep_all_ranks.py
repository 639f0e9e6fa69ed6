"""All ranks of a process group sweep, or none, and each gets all reports. The ranks run `rank_processes`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

RANKS = Path(__file__).with_name("rank_processes.py")
Told = list[dict[str, Any]]

pytestmark = [
    pytest.mark.skipif(
        not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no gloo"
    ),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """The results of each case on each of four ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, str(RANKS), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=400, env=env)
    assert done.stdout == "[-9, 0, 0, -9]\n", done.stdout + done.stderr
    return [dict(map(json.loads, (folder / f"rank{rank}").read_text().splitlines())) for rank in range(4)]


def test_every_rank_gets_all_reports_in_rank_order(recorded: Told) -> None:
    for rank, one in enumerate(case["all_sweep"] for case in recorded):
        assert one["ranks"] == [0, 1, 2, 3]
        assert one["released"] == [[[1000]], [[1001]], [[1002]], [[1003]]]
        assert one["kept"] == list(range(10))
        assert one["purged"]
        assert "rank_processes.py:" in one["labels"][rank]
        assert one["freed_bytes"] == sum(one["freed"])
        assert list(one["json"]["reports"]) == ["0", "1", "2", "3"]
        assert "on 4 ranks" in one["text"]


def test_reports_of_any_size_are_exchanged_and_the_store_is_left_empty(recorded: Told) -> None:
    for case in recorded:
        assert case["a_large_report"]["sizes"] == [9 << 20] * 4
    assert not recorded[0]["a_large_report"]["left"]


def test_a_subgroup_sweeps_alone_and_reports_global_ranks(recorded: Told) -> None:
    for rank, one in enumerate(case["a_subgroup"] for case in recorded):
        if rank in (1, 3):
            assert one == {"ranks": [1, 3], "released": [[2001], [2003]]}
        else:
            assert one["type"] == "ValueError"
            assert f"rank {rank}, is not a member" in one["text"]


def test_a_destroyed_group_is_an_error_that_says_so(recorded: Told) -> None:
    for case in recorded:
        one = case["a_group_that_was_destroyed"]
        assert one["type"] == "ValueError"
        assert "was it destroyed?" in one["text"]


def test_threads_of_a_rank_sweep_one_after_the_other(recorded: Told) -> None:
    for case in recorded:
        assert case["two_threads"] == [[0, 1, 2, 3]] * 2


def test_a_bad_argument_on_one_rank_raises_on_all_and_none_sweeps(recorded: Told) -> None:
    for rank, one in enumerate(case["a_bad_argument"] for case in recorded):
        assert one["left"] == 3000
        assert "rank 2: " in one["text"]
        assert "min_bytes must be 0 or more" in one["text"]
        assert one.get("type") == ("ValueError" if rank == 2 else None)


def test_bad_input_names_the_argument(recorded: Told) -> None:
    names = ["timeout"] * 6 + ["group"] * 2
    for case in recorded:
        found = case["bad_arguments_of_its_own"]
        assert all(name in one["text"] for name, one in zip(names, found, strict=True))
        assert {one["type"] for one in found} == {"TypeError", "ValueError"}


def test_without_a_process_group_it_says_what_to_call(recorded: Told) -> None:
    for case in recorded:
        assert case["before_the_group"]["type"] == "RuntimeError"
        assert "init_process_group" in case["before_the_group"]["text"]


def test_a_sweep_that_fails_is_named_on_all_ranks_and_all_others_have_swept(recorded: Told) -> None:
    for case in recorded:
        one = case["a_sweep_fails"]
        assert one["swept"] == {"0": [[4000]], "2": [[4002]], "3": [[4003]]}
        assert list(one["failures"]) == ["1"]
        assert "a sweep is under way" in one["failures"]["1"]


def test_pending_collectives_finish_with_the_same_result(recorded: Told) -> None:
    for case in recorded:
        assert case["collectives_in_flight"] == {"sums": [[6], [6]], "purged": True, "under_way": True}


def test_training_with_ddp_is_the_same_to_the_bit(recorded: Told) -> None:
    ways = {"plain": True, "bucket views": True, "a hook with a state": True}
    for case in recorded:
        assert case["training"] == ways


def test_a_rank_that_does_not_call_is_named_and_none_sweeps(recorded: Told) -> None:
    for case in recorded[:3]:
        one = case["one_does_not_call"]
        assert list(one["failures"]) == ["3"]
        assert one["left"] == 5000
        assert "no rank has swept\nrank 3: " in one["text"]


def test_after_a_call_that_one_rank_missed_the_next_call_succeeds(recorded: Told) -> None:
    for case in recorded:
        assert case["and_then_all_call_again"] == [0, 1, 2, 3]


def test_a_rank_interrupted_in_its_sweep_is_named_and_all_others_have_swept(recorded: Told) -> None:
    assert recorded[3]["one_is_interrupted_in_its_sweep"]
    for case in recorded[:3]:
        one = case["one_is_interrupted_in_its_sweep"]
        assert list(one["swept"]) == ["0", "1", "2"]
        assert one["failures"] == {"3": "KeyboardInterrupt: "}


def test_a_rank_interrupted_while_waiting_counts_as_silent_and_none_sweeps(recorded: Told) -> None:
    assert recorded[3]["one_is_interrupted_as_it_waits"]
    for case in recorded[:2]:
        one = case["one_is_interrupted_as_it_waits"]
        assert list(one["failures"]) == ["2", "3"]
        assert one["left"] == 7000
    for case in recorded:
        assert case["and_again"] == [0, 1, 2, 3]


def test_a_rank_that_dies_in_its_sweep_is_named_and_all_others_have_swept(recorded: Told) -> None:
    for case in recorded[:3]:
        one = case["one_is_killed_in_its_sweep"]
        assert one["swept"] == {"0": [[6000]], "1": [[6001]], "2": [[6002]]}
        assert list(one["failures"]) == ["3"]


def test_without_the_process_of_the_store_all_others_raise_at_once(recorded: Told) -> None:
    for rank in (1, 2):
        one = recorded[rank]["the_one_with_the_store_is_killed"]
        assert "0" in one["failures"]
        assert "out of reach" in one["failures"]["0"]
