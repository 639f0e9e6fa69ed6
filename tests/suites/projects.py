"""The projects whose tests `run.py` runs. The group `suites` of pyproject.toml has their versions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Project:
    """A source distribution with tests.

    Attributes:
        name: the name on PyPI.
        folder: the folder of the tests, without other code: its classes would count as the program's.
        tests: paths to run in that folder.
        few: paths that continuous integration runs; none, if empty.
        options: more options for pytest.

    """

    name: str
    folder: str
    tests: str = "."
    few: str = ""
    options: tuple[str, ...] = ()

    def paths(self, *, few: bool) -> list[str]:
        return [f"{self.folder}/{test}" for test in (self.few if few else self.tests).split()]


OPERATORS = (
    "batch_repeat",
    "block_diag",
    "cat",
    "constant_mul",
    "diag",
    "interpolated",
    "kernel",
    "kronecker_product_added_diag",
)
PROJECTS = (
    Project("einops", "einops/tests", few="test_einsum.py test_layers.py"),
    Project(
        "gpytorch",
        "test",
        "constraints distributions examples functions kernels likelihoods metrics utils",
        few="metrics",
    ),
    Project(
        "linear-operator",
        "test",
        # Each operator has the same two hundred tests.
        "functions utils test_settings.py "
        + " ".join(f"operators/test_{name}_linear_operator.py" for name in OPERATORS),
        few="utils",
    ),
    Project("nflows", "tests", few="flows transforms/autoregressive_test.py"),
    Project(
        "pytorch-ignite",
        "tests",
        "ignite/base ignite/engine ignite/handlers",
        options=(
            # These measure time.
            "--deselect=tests/ignite/handlers/test_time_profilers.py",
            "--deselect=tests/ignite/handlers/test_timing.py",
            *(f"--ignore=tests/ignite/handlers/test_{name}_logger.py" for name in ("clearml", "mlflow")),
        ),
    ),
    Project("pytorch-optimizer", "tests", "utils test_gradients.py test_lr_schedulers.py"),
    Project("skorch", "skorch/tests", "callbacks test_net.py test_classifier.py test_dataset.py"),
    Project("zuko", "tests", few="test_nn.py"),
)
