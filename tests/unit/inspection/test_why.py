"""`why` reports the referrer path from a root to an object, or the reason why there is none."""

from __future__ import annotations

import sys
import threading
import weakref
from collections import ChainMap
from types import ModuleType
from typing import Any, cast

import fastpurge
import pytest
import torch
from fastpurge import why

pytestmark = pytest.mark.usefixtures("collector_off")


class _RaisingModule(ModuleType):
    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise AssertionError("asked")


class _RaisingThread(threading.Thread):
    @property
    def name(self) -> str:
        raise AssertionError("asked")

    @name.setter
    def name(self, _: str) -> None: ...


class _RaisingMeta(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise AssertionError("asked")


class _RaisingError(Exception, metaclass=_RaisingMeta):
    pass


class _RaisingTensor(torch.Tensor):
    @classmethod
    def __torch_function__(cls, *_: Any, **__: Any) -> Any:
        raise AssertionError("asked")


def _see_all(program: Any) -> fastpurge.SweepReport:
    """Call all functions that read roots, with a large tensor to find."""
    found = why(torch.ones(2))  # not in the assertion, which pytest would assign to a variable
    assert found.path is None
    program.large = {10**5000: torch.ones(1000, 1000)}
    assert fastpurge.census().count > 0
    return fastpurge.sweep(keep=())


@pytest.mark.parametrize("what", ["module", "key", "thread", "error", "tensor", "nothing"])
def test_no_code_of_roots_is_run(what: str, program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()
    thread = _RaisingThread(target=done.wait) if what == "thread" else threading.Thread(target=done.wait)
    thread.start()
    if what == "module":
        monkeypatch.setitem(sys.modules, "raising", _RaisingModule("raising"))
    if what == "key":
        monkeypatch.setitem(cast(Any, sys.modules), 5, program)
    if what == "tensor":
        program.raising = torch.ones(3).as_subclass(_RaisingTensor)
    try:
        if what == "error":
            try:
                raise _RaisingError
            except BaseException:
                report = _see_all(program)
        else:
            report = _see_all(program)
    finally:
        done.set()
        thread.join()
    referent = [item.owner for item in report.released if item.owner is not None]
    assert referent == [f"{program.__name__}.large[<int of 16610 bits>]"]


class _Mapping(dict[str, Any]):
    def items(self) -> Any:
        raise AssertionError("asked")


def test_the_caller_may_store_its_variables_in_any_mapping(program: Any) -> None:
    program.make, program.why = (lambda: torch.ones(3)), why
    code = "referent = make(); found = why(referent)"
    exec(code, {"make": program.make, "why": why}, vars(program))
    assert program.found.path == f"{program.__name__}.referent"
    names = _Mapping()
    exec(code, vars(program), names)
    assert names["found"].path == "referent"
    chained: Any = ChainMap({})
    exec(code, vars(program), chained)
    assert "referent" in str(chained["found"].path)


def test_a_local_of_the_caller_is_reported_last(program: Any) -> None:
    mine = torch.ones(3)
    found = why(mine)
    assert found.path == "mine"
    assert found.where.startswith("test_a_local_of_the_caller_is_reported_last() at ")
    assert found.where.endswith("thread MainThread")
    assert found.reason == "nothing else that is reachable holds it"
    program.cache = [mine]
    assert why(mine).path == f"{program.__name__}.cache[0]"


def test_a_global_of_the_calling_module_is_reported_last(program: Any) -> None:
    code = "referent = make(); first = why(referent); cache = {'k': referent}; second = why(referent)"
    program.make, program.why = (lambda: torch.ones(3)), why
    exec(code, vars(program))
    assert program.first.path == f"{program.__name__}.referent"
    assert program.second.path == f"{program.__name__}.cache['k']"


def test_contents_of_local_containers_are_found_in_their_frame() -> None:
    batch = {"images": [torch.ones(3)]}
    found = why(batch["images"][0])
    assert found.path == "batch['images'][0]"
    assert found.where.startswith("test_contents_of_local_containers_are_found")


def test_locals_of_another_thread_are_found_in_their_frame() -> None:
    ready, done = threading.Event(), threading.Event()
    referent: list[weakref.ref[torch.Tensor]] = []

    def work() -> None:
        latent = torch.ones(3)
        referent.append(weakref.ref(latent))
        ready.set()
        done.wait()

    thread = threading.Thread(target=work, name="sampler")
    thread.start()
    ready.wait()
    try:
        found = why(referent[0]())
    finally:
        done.set()
        thread.join()
    assert found.path == "latent"
    assert found.where.startswith("work() at ")
    assert found.where.endswith("thread sampler")


def test_reading_a_frame_adds_no_references_to_it() -> None:
    def function() -> bool:
        latent = torch.ones(3)
        gone = weakref.ref(latent)
        why([latent])
        del latent
        return gone() is None

    assert function()


def test_an_exception_being_handled_is_a_root() -> None:
    def fail() -> None:
        big = torch.ones(3)
        referent.append(weakref.ref(big))
        raise ValueError

    referent: list[weakref.ref[torch.Tensor]] = []
    try:
        fail()
    except ValueError:
        found = why(referent[0]())
    assert found.path == "ValueError.__traceback__.tb_next.tb_frame.f_locals['big']"
    assert found.where == "an exception being handled, thread MainThread"


def test_several_objects_are_explained_at_once(program: Any) -> None:
    program.a, program.b = [torch.ones(1)], {"k": torch.ones(2)}
    first, second = why(program.a[0], program.b["k"])
    assert first.path == f"{program.__name__}.a[0]"
    assert second.path == f"{program.__name__}.b['k']"


def test_the_same_object_twice_is_explained_twice(program: Any) -> None:
    program.a = [torch.ones(1)]
    first, second = why(program.a[0], program.a[0])
    assert first == second


def test_the_graph_of_a_computation_in_another_thread_is_not_read() -> None:
    ready, done = threading.Event(), threading.Event()
    leaves: list[weakref.ref[torch.Tensor]] = []

    def work() -> None:
        leaf = torch.ones(3, requires_grad=True)
        leaves.append(weakref.ref(leaf))
        loss = (leaf * 2).sum()
        del leaf
        ready.set()
        done.wait()
        assert loss.requires_grad

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait()
    found = why(leaves[0]())
    done.set()
    thread.join()
    assert found.path is None
    assert str(found.reason).startswith("an external reference keeps it alive")


class Own:
    pass


def _cycle() -> weakref.ref[torch.Tensor]:
    own, referent = Own(), torch.ones(3)
    own.me, own.referent = own, [referent]  # type: ignore[attr-defined]
    return weakref.ref(referent)


def test_cyclic_garbage_has_no_path_and_a_reason() -> None:
    found = why(_cycle()())
    assert found.path is None
    assert found.reason is not None
    if sys.version_info < (3, 11):  # the stack of the caller refers to it too, and is not visible
        assert found.reason.startswith("an external reference keeps it alive")
        return
    assert found.reason.startswith("it is garbage: only a reference cycle")
    assert found.reason.endswith("[0]")


def test_an_object_referenced_only_by_the_call_has_no_path_and_a_reason() -> None:
    found = why(torch.ones(3))
    assert found.path is None
    expected = ["held only by this call's arguments"]
    if sys.version_info < (3, 11):
        expected.append("an external reference keeps it alive")
    assert any(found.reason is not None and found.reason.startswith(one) for one in expected)


def test_an_object_with_external_references_has_no_path_and_a_reason() -> None:
    on_the_stack = [torch.ones(4)]
    gone = weakref.ref(on_the_stack[0])

    def ask(_: object) -> fastpurge.Why:
        return why(gone())

    def handed_over() -> list[torch.Tensor]:
        return [on_the_stack.pop()]

    _, found = handed_over(), ask(None)
    assert found.path is None
    assert str(found.reason).startswith("an external reference keeps it alive")


def test_objects_of_any_type_are_explained(program: Any) -> None:
    program.root = {"text": "a" * 60, "number": 10**40, "module": torch.nn.Linear, "function": print}
    for found in why(*program.root.values()):
        assert found.path is not None
    assert why(torch.nn.Linear).what == "class Linear"
    assert why(program.root["number"]).what == f"int {10**39}..."


def test_an_object_without_a_description_is_described_by_its_type(program: Any) -> None:
    program.root = [torch.ones(2).to_sparse()]
    assert why(program.root[0]).what.startswith("float32 Tensor of shape (2,)")
    assert why(program.root).what == "list"


def test_a_call_without_an_object_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="at least one object"):
        why()  # type: ignore[call-overload]


def test_it_can_be_printed_shown_and_stored(program: Any) -> None:
    program.root = {"k": torch.ones(3)}
    found = why(program.root["k"])
    assert str(found).splitlines() == [
        "float32 Tensor of shape (3,) on cpu, 12 B",
        f"held by {program.__name__}.root['k']",
        "through dict > Tensor",
    ]
    assert "forgetful_program.root[" in found._repr_html_()
    assert found.to_dict()["path"] == found.path
