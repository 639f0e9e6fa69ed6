"""How full memory is: limits of the machine and of the container, and the threshold of a watch."""

from __future__ import annotations

from pathlib import Path

from fastpurge.allocators import pressure
from fastpurge.allocators.pressure import Threshold

from tests.unit.automatic.watch_helpers import MIB


def test_a_percentage_is_of_the_container_limit_if_that_is_closer(tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text("4:memory:/elsewhere\n0::/pods/one\n")
    inner = tmp_path / "root" / "pods" / "one"
    inner.mkdir(parents=True)

    def limit(folder: Path, most: object) -> None:
        (folder / "memory.max").write_text(f"{most}\n")
        (folder / "memory.current").write_text("900\n")
        (folder / "memory.stat").write_text("anon 500\ninactive_file 300\nactive_file 100\n")

    def shares() -> list[float]:
        return [*pressure.cgroup_shares(tmp_path / "root", membership)]

    assert shares() == [0]
    limit(inner, "max")
    assert shares() == [0]
    limit(inner, 1000)
    assert shares() == [0, 60]
    limit(inner.parent, 800)
    assert shares() == [0, 60, 75]
    (inner / "memory.max").write_text("0\n")
    assert shares() == [0, 75]
    assert [*pressure.cgroup_shares(tmp_path, tmp_path / "no such file")] == [0]
    membership.write_text("4:memory:/elsewhere\n")
    assert shares() == [0]


def test_the_threshold_rises_after_a_sweep_without_effect_and_falls_back() -> None:
    mark = Threshold(90, 80, most=100)
    assert [mark.is_passed(reading) for reading in (79, 90, 91)] == [False, False, True]
    mark.note_swept(79)
    assert mark.is_passed(91)
    mark.note_swept(85)
    assert [mark.is_passed(reading) for reading in (91, 92.5, 92.6)] == [False, False, True]
    mark.note_swept(96)
    assert [mark.is_passed(reading) for reading in (85, 97.9, 98.1)] == [False, False, True]
    assert [mark.is_passed(reading) for reading in (79, 91)] == [False, True]
    mark.note_swept(81)
    assert [mark.is_passed(reading) for reading in (90.5, 91)] == [False, True]
    endless = Threshold(90, 80)
    endless.note_swept(1000)
    assert [endless.is_passed(reading) for reading in (1010, 1011)] == [False, True]


def test_below_is_nine_tenths_of_above_by_default() -> None:
    assert pressure.parse("90%", None, None)[1].below == 81
    assert pressure.parse(1000 * MIB, None, "cpu")[1].below == 900 * MIB
    assert pressure.parse("90 %", "85.5%", None)[1].below == 85.5
