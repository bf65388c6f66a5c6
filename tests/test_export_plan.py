"""A plan on disk, for teams that train with their own tools, and back through the importer."""

import pytest

from mixlaw.design import Design
from mixlaw.domains import Domain, Scale
from mixlaw.errors import ExportError
from mixlaw.exporters import check_export, write_plan
from mixlaw.importers import import_tables
from mixlaw.mixtures import Mixture
from mixlaw.observations import run_mixture
from mixlaw.runs.plan import describe_plan, plan_runs

NAMES = ("<script>alert(1)</script>", "$(id)", "../x")
MIXTURES = (Mixture(NAMES, (0.5, 0.25, 0.25)), Mixture(NAMES, (0.1, 0.0, 0.9)))
DESIGN = Design(domains=NAMES, mixtures=MIXTURES, method="given", seed=0)
PREFIXES = {name: f"/data/{index}" for index, name in enumerate(NAMES)}


def make_plan():
    held_out = [Mixture(NAMES, (0.3, 0.3, 0.4))]
    runs = plan_runs(
        DESIGN, params=1000, steps=4, tokens_per_step=1000, corpus="c", tokenizer="bytes",
        trainer="proxy/1", noise_runs=1, holdout=held_out,
    )  # fmt: skip
    return describe_plan(runs, design=DESIGN, domains=[Domain(name=name) for name in NAMES])


def test_files_are_named_by_number_and_hold_each_mixture_once(tmp_path):
    paths = write_plan(make_plan(), tmp_path / "out", prefixes=PREFIXES)
    assert [path.name for path in paths] == [
        "runs.csv",
        "mixture-001.json", "mixture-001.megatron.txt",
        "mixture-002.json", "mixture-002.megatron.txt",
        "mixture-003.json", "mixture-003.megatron.txt",
    ]  # fmt: skip
    assert sorted(tmp_path.rglob("*")) == sorted([tmp_path / "out", *paths])
    assert check_export(paths[3], "json") == MIXTURES[1]
    blend = check_export(paths[4], "megatron", prefixes=PREFIXES)
    assert dict(blend) == {NAMES[0]: 0.1, NAMES[2]: 0.9}


def test_a_plan_comes_back_with_the_losses_of_its_runs(tmp_path):
    plan = make_plan()
    runs_path = write_plan(plan, tmp_path, prefixes=PREFIXES)[0]
    metrics = tmp_path / "metrics.csv"
    lines = [f"run-{i + 1:03},4,{NAMES[0]},{2 + i / 10}\n" for i in (2, 0, 3, 1)]
    metrics.write_text("run,step,target,loss\n" + "".join(lines), encoding="utf-8")
    imported = import_tables(runs_path, metrics)
    assert imported.runs["role"].to_list() == ["imported", "imported", "noise", "holdout"]
    assert imported.runs["seed"].to_list() == [run.spec.seed for run in plan.runs]
    assert imported.runs["params_non_embedding"].to_list() == [1000.0] * 4
    for run_id, run in zip(imported.runs["run_id"], plan.runs, strict=True):
        assert run_mixture(imported.runs, run_id) == run.spec.mixture
    values = dict(imported.observations.select("run_id", "value").iter_rows())
    assert [values[run_id] for run_id in imported.runs["run_id"]] == [2.0, 2.1, 2.2, 2.3]


def test_a_design_alone_can_be_written(tmp_path):
    paths = write_plan(
        DESIGN,
        tmp_path,
        domains=[Domain(name=name, available_tokens=1e6) for name in NAMES],
        scale=Scale(tokens=2e6),
        prefixes=PREFIXES,
    )
    assert len(paths) == 5
    assert '"epochs": 1.0' in paths[1].read_text(encoding="utf-8")


def test_nothing_is_written_when_a_prefix_is_missing(tmp_path):
    with pytest.raises(ExportError, match="so Megatron needs a prefix for it"):
        write_plan(make_plan(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_way_is_said(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(ExportError, match="must be a folder: File exists"):
        write_plan(make_plan(), tmp_path / "out", prefixes=PREFIXES)
