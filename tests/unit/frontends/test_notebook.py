"""The magics, in an IPython shell and in a real kernel that executes a notebook."""

from __future__ import annotations

import builtins
import gc
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from traceback import format_exception
from typing import Any

import fastpurge
import nbformat
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from traitlets.config import Config

MiB = 2**20
LAST = ("last_exc", "last_type", "last_value", "last_traceback")
COLOURS = re.compile(r"\x1b\[[0-9;]*m")

RUN_OUT = """
def inner(batch):
    activations = torch.ones(3, 1 << 18)
    return torch.empty(1 << 60) + activations + batch

def outer():
    batch = torch.ones(2, 1 << 18)
    return inner(batch)

outer()
"""


class Session:
    """An IPython shell in this process, with captured output."""

    def __init__(self, folder: Path, capture: pytest.CaptureFixture[str]) -> None:
        config = Config()
        config.HistoryManager.enabled = False
        self.shell: Any = InteractiveShell(config=config, ipython_dir=str(folder), colors="nocolor")
        self.names = self.shell.user_ns
        self._capture = capture
        self.run("import torch, fastpurge")
        self.run("%load_ext fastpurge")

    def run(self, cell: str) -> str:
        """Execute a cell that raises no error; return its output."""
        self._capture.readouterr()
        self.shell.run_cell(cell, store_history=True).raise_error()
        return COLOURS.sub("", self._capture.readouterr().out)

    def fail(self, cell: str) -> str:
        """Execute a cell that raises an error; return the printed error."""
        self._capture.readouterr()
        assert not self.shell.run_cell(cell, store_history=True).success
        return COLOURS.sub("", "".join(self._capture.readouterr()))


@pytest.fixture
def session(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Session]:
    names = ("displayhook", "excepthook", *LAST)
    trace = sys.gettrace()
    before = {name: vars(sys)[name] for name in names if hasattr(sys, name)}
    for name in LAST:
        vars(sys).pop(name, None)
    made = Session(tmp_path, capsys)
    yield made
    made.shell.reset(new_session=False)
    made.shell.restore_sys_module_state()
    for name in names:
        vars(sys).pop(name, None)
    vars(sys).update(before)
    sys.settrace(trace)  # a debugger would remove the trace function that measures coverage
    for name in ("get_ipython", "display"):
        vars(builtins).pop(name, None)


def tensors_of(size: int) -> int:
    """The number of live tensors of ``mebibytes`` MiB."""
    gc.collect()
    found = [one for one in gc.get_objects() if type(one) is torch.Tensor]
    return sum(one.shape == (size, MiB // 4) for one in found if not fastpurge.is_purged(one))


def test_named_variables_stay_and_the_rest_is_released(session: Session) -> None:
    session.run("model, x, junk = torch.nn.Linear(3, 4), torch.ones(1, 3), torch.ones(5)")
    expected = session.names["model"](session.names["x"]).tolist()
    shown = session.run("%sweep keep model, x")
    assert "fastpurge freed" in shown
    assert "(5,)" in shown
    assert session.names["model"](session.names["x"]).tolist() == expected
    message = r"released by fastpurge \(%sweep in cell \[4\]\)"
    with pytest.raises(fastpurge.PurgedError, match=message):
        session.names["junk"] + 1


def test_a_report_is_a_value_and_can_be_silenced(session: Session) -> None:
    session.run("junk = torch.ones(5)")
    assert session.run("report = %sweep keep ()") == ""
    assert [item.shape for item in session.names["report"].released] == [(5,)]
    assert session.run("%sweep keep ();") == ""


def test_keep_accepts_any_expression(session: Session) -> None:
    session.run("things = {'a b': torch.ones(3), 'c': torch.ones(4)}; more = [torch.ones(6)]")
    session.run("%sweep keep things['a b'], *more, {n: torch.ones(n) for n in (1, 2)}")
    purged = [fastpurge.is_purged(one) for one in (*session.names["things"].values(), *session.names["more"])]
    assert purged == [False, True, False]
    session.run("%sweep keep{things['a b']}")
    assert not fastpurge.is_purged(session.names["things"]["a b"])
    assert fastpurge.is_purged(session.names["more"][0])


def test_options_are_those_of_a_sweep(session: Session) -> None:
    session.run("small, large = torch.ones(3), torch.ones(300); model = torch.nn.Linear(300, 3)")
    session.run("%sweep --no-models --min-bytes 1_000 --devices cpu keep model.weight")
    small, large, model = (session.names[name] for name in ("small", "large", "model"))
    assert [fastpurge.is_purged(one) for one in (small, large, model)] == [False, True, False]
    shown = session.run("%sweep --devices cuda,meta keep ()")
    assert "nothing released" in shown


def test_the_plan_magic_changes_nothing(session: Session) -> None:
    session.run("junk = torch.ones(5)")
    shown = session.run("plan = %sweep --plan keep ()\nplan")
    assert "fastpurge would release" in shown
    assert not fastpurge.is_purged(session.names["junk"])
    session.run("plan.apply()")
    assert fastpurge.is_purged(session.names["junk"])


def test_a_plan_in_the_history_keeps_nothing_alive(session: Session) -> None:
    session.run("import weakref; model = torch.nn.Linear(3, 4); ref = weakref.ref(model)")
    session.run("%sweep --plan keep [model]")
    session.run("fastpurge.plan(keep=[model])")
    session.run("del model; import gc; gc.collect()")
    assert session.names["ref"]() is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "write what to keep: %sweep keep model, x"),
        ("--wipe", "write what to keep"),
        ("keep", "nothing after keep"),
        ("model", "unexpected 'model'"),
        ("model keep x", "unexpected 'model'"),
        ("keep junk --plan", "--plan must be before the word keep"),
        ("keep modle", "keep: modle raised NameError: name 'modle' is not defined (nothing was touched)"),
        ("keep junk,, x", "raised SyntaxError"),
        ("keep 'junk'", "keep must be the object itself, not a str: write keep=[junk]"),
        ("--history keep None", "keep must be what to protect, not None"),
        ("--exception keep 'junk', 'x'", "keep must contain the objects themselves"),
        ("--min-bytes 1M keep junk", "--min-bytes must be an int of 0 or more (bytes), not 1M"),
        ("--min-bytes=-1 keep junk", "--min-bytes must be"),
        ("--devices tpu9 keep junk", "'tpu9' is not a device"),
        ("--guards keep junk", "unrecognized arguments: --guards"),
        ("--plan --history keep junk", "--plan touches nothing"),
        ("--plan --exception keep junk", "--plan touches nothing"),
    ],
)
def test_wrong_arguments_are_named_and_nothing_is_released(session: Session, line: str, message: str) -> None:
    session.run("junk = torch.ones(5); torch.ones(6)")
    session.run("torch.ones(6)")
    assert message in session.fail(f"%sweep {line}")
    assert not fastpurge.is_purged(session.names["junk"])
    assert session.names["Out"][4].shape == (6,)


def test_an_expression_that_raises_leaves_nothing_alive(session: Session) -> None:
    session.run("def bad():\n    mine = torch.ones(7, 1 << 18)\n    raise ValueError(len(mine))")
    assert "bad() raised ValueError: 7" in session.fail("%sweep keep bad()")
    assert tensors_of(7) == 0


def test_locals_of_the_last_exception_are_released_on_request(session: Session) -> None:
    session.run("model, x = torch.nn.Linear(3, 4), torch.ones(1, 3)")
    assert "you tried to allocate" in session.fail(RUN_OUT)
    before = format_exception(sys.last_value)
    assert (tensors_of(2), tensors_of(3)) == (1, 1)
    shown = session.run("report = %sweep --exception keep model, x")
    assert (tensors_of(2), tensors_of(3)) == (0, 0)
    assert "fastpurge let go of 5.0 MiB" in shown
    assert "inner (" in shown
    assert session.names["report"].released == ()
    assert format_exception(sys.last_value) == before
    assert session.names["model"](session.names["x"]).shape == (1, 4)


def test_the_last_exception_is_found_after_a_mistyped_line(session: Session) -> None:
    session.fail(RUN_OUT)
    session.fail("%sweep")  # now this is the last exception
    assert "let go of 5.0 MiB" in session.run("%sweep --exception keep ()")


def test_the_traceback_can_still_be_printed(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    session.fail(RUN_OUT)
    commands = iter(["up", "list", "p sorted(locals())", "quit"] * 2)
    monkeypatch.setattr("builtins.input", lambda *_: next(commands))
    monkeypatch.setattr("IPython.core.debugger.Pdb.use_rawinput", True)
    assert "['batch']" in session.run("%debug")  # and the debugger stores the locals that it has read
    assert "let go of 5.0 MiB" in session.run("%sweep --exception keep ()")
    shown = session.run("%debug")
    assert "return inner(batch)" in shown
    assert "[]" in shown
    session.shell.showtraceback()
    assert "torch.empty(1 << 60)" in session._capture.readouterr().out


def test_without_the_request_locals_of_an_exception_become_tombstones(session: Session) -> None:
    session.fail(RUN_OUT)
    session.run("report = %sweep keep ()")
    assert sorted(item.shape for item in session.names["report"].released if item.shape) == [
        (2, MiB // 4),
        (3, MiB // 4),
    ]


def test_history_entries_with_unkept_objects_are_dropped_on_request(session: Session) -> None:
    session.run("torch.ones(2, 1 << 18)")  # 3
    session.run("kept = {'deep': [torch.ones(3, 1 << 18)]}; kept['deep']")  # 4
    session.run("(torch.ones(4, 1 << 18), 'and text')")  # 5
    session.run("'text'")  # 6
    session.run("torch.ones(5, 1 << 18)")  # 7
    session.run("_3 = [torch.ones(6, 1 << 18)]")  # a variable of the user with a name of IPython
    session.run("_7")  # 9, the same object once more
    assert "fastpurge let go" not in session.run("%sweep --plan keep kept, _3")
    shown = session.run("report = %sweep --history keep kept, _3")
    assert "fastpurge let go of 11.0 MiB" in shown
    assert "Out[7], Out[9], __" in shown.replace("_, ", "")
    assert sorted(session.names["Out"]) == [4, 6, 10]
    assert [tensors_of(size) for size in (2, 3, 4, 5, 6)] == [0, 1, 0, 0, 1]
    assert session.names["report"].released == ()
    assert session.names["_3"][0].shape == (6, MiB // 4)
    assert not {"_5", "_7", "_9"} & {*session.names, *session.shell.user_ns_hidden}
    assert session.names["_6"] == "text"
    assert "torch.ones(4, 1 << 18)" in session.names["In"][5]
    assert session.names["_i5"] == session.names["In"][5]


def test_history_entries_that_alone_refer_to_kept_objects_stay(session: Session) -> None:
    session.run("[torch.ones(2, 1 << 18), torch.ones(3, 1 << 18)]")
    session.run("%sweep --history keep Out[3][0]")
    kept, unkept = session.names["Out"][3]
    assert kept.sum() == 2 * MiB // 4
    assert unkept.sum() == 3 * MiB // 4  # the entry refers to it, and stays


def test_history_continues_after_entries_were_dropped(session: Session) -> None:
    session.run("torch.ones(2, 1 << 18)")
    assert "let go of 2.0 MiB" in session.run("%sweep --history keep ();")
    assert tensors_of(2) == 0
    session.run("1 + 1")
    assert session.names["_"] == 2
    session.run("2 + 2")
    assert (session.names["_"], session.names["__"], session.names["_6"]) == (4, 2, 4)


def test_without_the_request_history_is_spared(session: Session) -> None:
    session.run("torch.ones(2, 1 << 18)")
    session.run("report = %sweep keep ()")
    assert session.names["report"].spared["library"] == 2 * MiB
    assert session.names["Out"][3].sum() == 2 * MiB // 4


def test_the_why_magic_prints_a_referrer_path(session: Session) -> None:
    session.run("cache = {'old': [torch.ones(3)]}\ntorch.ones(4)")
    shown = session.run("%why cache['old'][0]")
    assert "held by __main__.cache['old'][0]" in shown
    shown = session.run("%why Out[3], cache['old'], ")
    assert "held by __main__._" in shown  # by a name that IPython gives to a result
    assert "held by __main__.cache['old']\n" in shown
    assert "held by __main__.cache\n" in session.run("%why cache,  # one of several")
    session.run("again = {'k': cache['old']}; old = cache['old']")
    assert "held by __main__.cache['old']\n" in session.run("%why old")  # and not by the requested name
    assert session.run("found = %why cache") == ""
    assert session.names["found"].path == "__main__.cache"
    assert "%why needs an object" in session.fail("%why")
    assert "why: cahce raised NameError" in session.fail("%why cahce")


def test_the_census_magic_lists_owners_of_memory(session: Session) -> None:
    session.run("cache = {'old': torch.ones(9, 1 << 18), 'older': torch.ones(8, 1 << 18)}")
    shown = session.run("%census")
    assert "live tensors and arrays" in shown
    assert "__main__.cache['old']" in shown
    assert "__main__.cache['older']" in shown
    assert session.run("found = %census 1") == ""
    assert [one.path for one in session.names["found"].largest] == ["__main__.cache['old']"]
    assert "top must be an int of 0 or more, not many" in session.fail("%census many")


def test_a_kernel_runs_the_magics_and_shows_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    cells = [
        "import sys\nloaded = set(sys.modules)\nimport fastpurge\n'torch' in set(sys.modules) - loaded",
        "%load_ext fastpurge\nimport torch, gc",
        "model, x, junk = torch.nn.Linear(3, 4), torch.ones(1, 3), torch.ones(4, 1 << 18)",
        "torch.ones(6, 1 << 18)",
        RUN_OUT,
        "%sweep",
        "%census 3",
        "%why junk",
        "%sweep --exception --history keep model, x",
        "alive = sum(o.nbytes for o in gc.get_objects() if type(o) is torch.Tensor)",
        "alive, fastpurge.is_purged(junk), model(x).shape, 4 in Out",
        "import traceback; text = traceback.format_tb(get_ipython().InteractiveTB.tb)",
        "'torch.empty(1 << 60)' in ''.join(text)",
    ]
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    client = NotebookClient(made, kernel_name="python3", allow_errors=True, timeout=120)
    client.execute(cwd=str(tmp_path))
    lazy, _, _, _, failed, bare, census, why, swept, _, after, _, text = (cell.outputs for cell in made.cells)
    assert lazy[0].data["text/plain"] == "False"
    assert failed[-1].ename == "RuntimeError"
    assert "write what to keep" in "".join(str(one) for one in bare)
    assert "live tensors and arrays" in census[0].data["text/html"]
    assert "held by __main__.junk" in why[0].data["text/html"]
    let_go, dropped, report = swept
    assert let_go.output_type == "display_data"
    assert "fastpurge let go of 5.0 MiB" in let_go.data["text/plain"]
    assert "let go of 6.0 MiB" in dropped.data["text/html"]
    assert report.output_type == "execute_result"
    assert "fastpurge freed" in report.data["text/html"]
    assert "(4, 262144)" in report.data["text/plain"]
    assert "\x1b" not in report.data["text/plain"]
    assert after[0].data["text/plain"] == "(12, True, torch.Size([1, 4]), False)"
    assert text[0].data["text/plain"] == "True"


def test_a_wrong_magic_line_stops_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    cells = ["%load_ext fastpurge", "%sweep keep modle"]
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    with pytest.raises(CellExecutionError):
        NotebookClient(made, kernel_name="python3", timeout=120).execute(cwd=str(tmp_path))
