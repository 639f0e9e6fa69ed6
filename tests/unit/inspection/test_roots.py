"""Roots of referrer paths: reading them changes nothing in running code."""

from __future__ import annotations

import subprocess
import sys
import textwrap


def _run(program: str) -> None:
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)


def test_a_thread_with_a_replaced_id_is_identified_by_its_frame() -> None:
    # As gevent does, so that each greenlet has an id.
    _run("""
        import threading
        get_ident, threading.get_ident = threading.get_ident, lambda: 12345
        import torch, fastpurge

        def function():
            mine = torch.ones(3)
            return fastpurge.why(mine)

        cache = [torch.ones(1 << 20)]
        assert "function()" in str(function()), function()
        assert fastpurge.census().devices
        report = fastpurge.sweep(keep=())
        assert "__main__.cache[0]" in [item.owner for item in report.released], report
        threading.get_ident = get_ident
    """)


def test_a_class_body_under_execution_is_a_root() -> None:
    _run("""
        import torch, fastpurge

        class Namespace(dict):
            def __delitem__(self, key):
                raise AssertionError("asked")

        class Meta(type):
            def __prepare__(name, bases):
                return Namespace()
            def __new__(meta, name, bases, namespace):
                return super().__new__(meta, name, bases, dict(namespace))

        cache = [torch.ones(1 << 20)]
        seen = torch.ones(3)

        class Class(metaclass=Meta):
            __class__ = property(lambda self: int)

            def method(self):
                return super().method()

            why = fastpurge.why(seen)
            report = fastpurge.sweep(keep=())

        assert "__class__" in vars(Class)
        assert Class().__class__ is int
        assert "__main__.cache[0]" in [item.owner for item in Class.report.released], Class.report
    """)


def test_calls_from_c_code_without_a_python_frame_work() -> None:
    _run("""
        import _thread, atexit, functools, itertools, sys, time, torch, fastpurge

        cache, failed = [torch.ones(1000)], []
        sys.unraisablehook = lambda of: failed.append(of.exc_value)
        for call, arguments in (
            (fastpurge.plan, {"keep": ()}),
            (fastpurge.sweep, {"keep": ()}),
            (fastpurge.census, {}),
            (fastpurge.trim, {}),
        ):
            done = []
            calls = itertools.starmap(functools.partial(call, **arguments), [()])
            _thread.start_new_thread(done.extend, (calls,))
            while not done and not failed:
                time.sleep(0.01)
            assert failed == []
        assert fastpurge.is_purged(cache[0])
        try:
            cache[0] + 1
        except fastpurge.PurgedError as error:
            assert "<C code>" in str(error), error
        atexit.register(fastpurge.sweep, keep=())
    """)
