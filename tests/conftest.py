"""Strict numerics under every test, and nothing read from or written to the user's own folders."""

import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

install_import_hook(
    [
        "mixlaw.mixtures",
        "mixlaw.laws",
        "mixlaw.observations",
        "mixlaw.design",
        "mixlaw.fit",
        "mixlaw.predict",
        "mixlaw.optimize",
    ],
    "beartype.beartype",
)


# No test is timed: a busy machine is no reason to fail.
settings.register_profile("mixlaw", deadline=None)
settings.load_profile("mixlaw")


@pytest.fixture(autouse=True)
def strict_numerics() -> Iterator[None]:
    """Floating-point errors raise; underflow to zero is fine."""
    with np.errstate(all="raise", under="ignore"):
        yield
