"""Where the papers' own runs are, which the project does not hold."""

import os
from pathlib import Path

import pytest

VARIABLE = "MIXLAW_PUBLISHED_DATA"


def published_data() -> Path:
    """Returns the folder with the published runs; a test that lacks it is skipped.

    It is where MIXLAW_PUBLISHED_DATA says, or `shared/data` beside the checkout.
    """
    named = os.environ.get(VARIABLE)
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / "mixinglaws").is_dir():
        pytest.skip(f"no published runs in {folder}; {VARIABLE} names another folder")
    return folder
