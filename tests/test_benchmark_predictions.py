"""What the benchmarks do with a second folder: the published runs, some of them moved there."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from published import published_data

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import paper_mixing
import paper_scale
import slimpajama
from mixlaw.importers.published import read_slimpajama
from mixlaw.observations import PROPORTION_PREFIX

FEW = ("mean", "linear")


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A folder to fit and one to predict; the second has no weights."""
    monkeypatch.setattr(paper_mixing, "CANDIDATES", FEW)
    monkeypatch.setattr(paper_mixing, "SHOWN", ())
    monkeypatch.setattr(paper_mixing, "has_baselines", lambda: False)
    monkeypatch.setattr(paper_scale, "CANDIDATES", FEW)
    source = published_data() / "mixinglaws"
    for name in ("RedPajama", "valid_weight.json"):
        copy = shutil.copytree if (source / name).is_dir() else shutil.copy
        (tmp_path / "fit").mkdir(exist_ok=True)
        copy(source / name, tmp_path / "fit" / name)
    (tmp_path / "predict" / "RedPajama").mkdir(parents=True)
    (tmp_path / "fit").chmod(0o755)
    (tmp_path / "fit" / "RedPajama").chmod(0o755)
    return tmp_path / "fit", tmp_path / "predict"


def move(folders: tuple[Path, Path], size: str, *, having: str, without: str = "\0") -> None:
    """Moves lines of one size to the second folder, some of them for good."""
    fit, predict = (folder / "RedPajama" / f"{size}.txt" for folder in folders)
    lines = fit.read_text().splitlines(keepends=True)
    fit.chmod(0o644)
    kept = "".join(line for line in lines if having not in line)
    if kept:
        fit.write_text(kept)
    else:
        fit.unlink()
    moved = [line for line in lines if having in line and without not in line]
    predict.write_text("".join([*moved, moved[0]]))  # a doubled line, as in the source


def test_new_mixture_at_a_fitted_size_is_predicted_under_its_case(folders) -> None:
    move(folders, "160M", having="RP_20-", without=".ArXiv.")
    rows = paper_mixing.predict_mixtures(*folders, "RedPajama")
    cases = {(row["case"], row["target"] == "overall") for row in rows}
    assert cases == {("redpajama/overall", True), ("redpajama/domain", False)}
    assert {row["params"] for row in rows} == {paper_mixing.SIZES["160M"]}
    arxiv = [row for row in rows if row["target"] == "ArXiv"]
    assert arxiv
    assert all(np.isnan(row["observed"]) for row in arxiv)
    known = [row for row in rows if row["target"] == "Pile-CC" and row["metric"] == "prediction"]
    assert all(np.isfinite(row["observed"]) for row in known)


def test_larger_size_is_predicted_for_fitted_and_new_mixtures(folders) -> None:
    move(folders, "410M", having="/")
    for size in ("70M", "160M", "305M"):
        move(folders, size, having="RP_20-")
    rows = paper_scale.predict_beyond(*folders, "RedPajama")
    ours = [row for row in rows if row["law"] == "selected" and row["params"] is not None]
    overall = [r for r in ours if r["case"] == "redpajama/overall" and r["metric"] == "prediction"]
    assert all(row["low"] < row["value"] < row["high"] for row in overall)
    new = [row for row in overall if "RP_20-" in row["run_id"] and row["params"] > 3e8]
    assert len(new) == 11
    assert max(abs(row["value"] - row["observed"]) for row in new) < 0.2


def test_nothing_unseen_is_no_record(folders) -> None:
    shutil.copy(folders[0] / "RedPajama" / "160M.txt", folders[1] / "RedPajama" / "160M.txt")
    assert paper_mixing.predict_mixtures(*folders, "RedPajama") == []
    assert paper_scale.predict_beyond(*folders, "RedPajama") == []


def test_slimpajama_columns_may_come_in_another_order() -> None:
    published = read_slimpajama(published_data() / "slimpajama")
    fitted = slimpajama.late_rows(published)
    shares = [c for c in published.runs.columns if c.startswith(PROPORTION_PREFIX)]
    others = [c for c in published.runs.columns if c not in shares]
    turned = replace(
        published,
        runs=published.runs.select(*others, *reversed(shares)),
        observations=published.observations.filter(pl.col("target") != "arxiv"),
    )
    found = slimpajama.like_fitted(turned, fitted)
    assert found is not None
    assert found.domains == fitted.domains
    assert np.array_equal(found.x_RX, fitted.x_RX)
    missing = [i for i, target in enumerate(fitted.targets) if target == "arxiv"]
    assert np.isnan(found.y_RT[:, missing]).all()
    empty = replace(turned, observations=turned.observations.head(0))
    assert slimpajama.like_fitted(empty, fitted) is None
