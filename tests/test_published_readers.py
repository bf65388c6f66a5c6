"""The readers of the published formats: what they find, the dirt, and malformed files."""

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mixlaw.errors import MixlawError, MixtureError, TableError
from mixlaw.importers.published import (
    add_overall,
    read_mixinglaws,
    read_overtraining,
    read_random_baselines,
    read_regmix,
    read_slimpajama,
    read_valid_weights,
)
from mixlaw.observations import (
    check_observations,
    check_runs,
    loss_table,
    proportion_domains,
    target_names,
)
from published import published_data

PILE = "data/pythia-pile.valid.domains/pythia-pile.valid"


def write_set(folder: Path, lines: list[str], *, size: str = "70M") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{size}.txt").write_text("".join(line + "\n" for line in lines))
    return folder


def line(run: str, step: object, loss: object, *, target: str = "ArXiv") -> str:
    return f"ckpts/Set/{run}/{step}\t{PILE}.{target}.bin\t{loss}"


@pytest.mark.parametrize(
    ("name", "runs", "mixtures", "targets", "losses"),
    [
        ("2Mix", 10, 5, 2, 220),
        ("5Mix", 104, 26, 22, 30_844),
        ("RedPajama", 100, 40, 22, 24_156),
    ],
)
def test_every_line_of_a_clean_set_is_a_loss(
    name: str, runs: int, mixtures: int, targets: int, losses: int
) -> None:
    found = read_mixinglaws(published_data() / "mixinglaws" / name)
    assert found.runs.height == len(found.labels) == runs
    assert found.runs["mixture_id"].n_unique() == mixtures
    assert found.observations["target"].n_unique() == targets
    assert found.observations.height == losses
    assert check_runs(found.runs).equals(found.runs)
    assert check_observations(found.observations).equals(found.observations)


def test_parameters_are_those_of_the_data_readme_and_of_pythia() -> None:
    runs = read_mixinglaws(published_data() / "mixinglaws" / "RedPajama").runs
    sizes = runs.select("params_non_embedding", "params_total").unique().sort("params_total")
    # Pythia's model cards: 70,426,624, 162,322,944 and 405,334,016 parameters in all.
    assert sizes.rows() == [
        (18_915_328.0, 70_426_624.0),
        (85_056_000.0, 162_322_944.0),
        (201_541_632.0, 304_564_224.0),
        (302_311_424.0, 405_334_016.0),
    ]
    assert runs["tokens_per_step"].unique().to_list() == [1_048_576.0]
    assert runs.select("schedule", "schedule_steps").unique().rows() == [("cosine", 100_000)]


def test_labels_are_run_folders_without_the_size() -> None:
    folder = published_data() / "mixinglaws"
    assert "RP_0-0.125-0.125-0.28125-0.125-0.09375-0.125-0.125" in set(
        read_mixinglaws(folder / "RedPajama").labels.values()
    )
    five = read_mixinglaws(folder / "5Mix")
    run_id = next(id for id, label in five.labels.items() if label.startswith("10-"))
    assert five.labels[run_id] == "10-0.5-0-0-0.125-0.375"
    shares = five.runs.filter(pl.col("run_id") == run_id).select("^r:.*$").row(0)
    assert shares == (0.5, 0.0, 0.0, 0.125, 0.375)


def test_losses_stand_at_their_run_step_and_target() -> None:
    found = read_mixinglaws(published_data() / "mixinglaws" / "2Mix")
    table = loss_table(found.runs, found.observations, step=30_000, targets=["Github", "Pile-CC"])
    rows = [i for i, run_id in enumerate(table.run_ids) if run_id.startswith("2Mix/70M/")]
    assert table.domains == ("Github", "Pile-CC")
    np.testing.assert_array_equal(table.r_RM[rows, 0], [0.25, 0.375, 0.5, 0.625, 0.75])
    # 2Mix/70M.txt, its lines of step 30000.
    assert table.y_RT[rows[0]].tolist() == [1.4443359375, 3.498733108108108]
    assert table.y_RT[rows[-1]].tolist() == [1.2567707015435223, 3.7032881603194103]
    # The order of the domains: more of the first one helps Github and hurts Pile-CC.
    assert np.all(np.diff(table.y_RT[rows, 0]) < 0)
    assert np.all(np.diff(table.y_RT[rows, 1]) > 0)


def test_steps_named_last_repeat_a_numbered_step_and_are_left_out() -> None:
    found = read_mixinglaws(published_data() / "mixinglaws" / "3Mix")
    assert any(
        note == "left out: 27 losses at the step `last`; 27 of them repeat one of a numbered step"
        for note in found.notes
    )
    # 995 + 2,155 + 77 lines; two runs of 410M have a slash behind their step.
    assert found.observations.height == 995 + 2155 + 77 - 27
    ends = found.observations.filter(pl.col("run_id").str.contains("410M/4-0-0.5-0.5"))
    assert ends.select("step", "target", "value").rows() == [
        (60_000, "Github", 2.2222925101214575),
        (60_000, "Pile-CC", 3.113416650690184),
        (60_000, "Books3", 2.9615091463414633),
    ]


def test_continued_runs_start_from_the_original_models_losses() -> None:
    found = read_mixinglaws(published_data() / "mixinglaws" / "ct")
    assert found.runs["parent_run_id"].unique().to_list() == ["pythia_70m_step20000"]
    assert found.runs["schedule"].null_count() == found.runs.height == 4
    assert proportion_domains(found.runs) == ("Pile", "Python")
    start = found.observations.filter((pl.col("step") == 0) & (pl.col("target") == "Pile-CC"))
    assert start["value"].to_list() == [3.602944563882064] * 4
    assert "starcoder.python" in target_names(found.observations)


def test_overall_loss_is_the_weighted_sum_of_all_22_targets() -> None:
    folder = published_data() / "mixinglaws"
    weights = read_valid_weights(folder / "valid_weight.json")
    found = read_mixinglaws(folder / "5Mix")
    whole = add_overall(found.observations, weights).filter(pl.col("target") == "overall")
    complete = found.observations.group_by("run_id", "step").len().filter(pl.col("len") == 22)
    assert whole.height == complete.height == 346 + 364 + 286 + 405
    run_id, step, value = whole.select("run_id", "step", "value").row(17)
    parts = found.observations.filter((pl.col("run_id") == run_id) & (pl.col("step") == step))
    expected = sum(weights[t] * v for t, v in parts.select("target", "value").iter_rows())
    assert value == pytest.approx(expected, rel=1e-14)


def test_regmix_joins_by_index_whatever_the_order_of_rows(tmp_path: Path) -> None:
    folder = published_data() / "regmix"
    found = read_regmix(folder)
    assert found.runs.height == 512
    assert len(proportion_domains(found.runs)) == 17
    assert found.observations.height == 512 * 13
    assert any("0.996 to 1.003" in note for note in found.notes)
    shutil.copy(folder / "train_mixture_1m.csv", tmp_path)
    losses = (folder / "train_pile_loss_1m.csv").read_text().splitlines()
    (tmp_path / "train_pile_loss_1m.csv").write_text("\n".join([losses[0], *losses[:0:-1]]) + "\n")
    mirrored = read_regmix(tmp_path)
    key = ["run_id", "step", "target"]
    assert mirrored.runs.equals(found.runs)
    assert mirrored.observations.sort(key).equals(found.observations.sort(key))
    # train_pile_loss_1m.csv, index 1.
    first = found.observations.filter(
        (pl.col("run_id") == "regmix/train/1") & (pl.col("target") == "arxiv")
    )
    assert first["value"].to_list() == [7.0255866050720215]


def test_regmix_reads_test_mixtures_by_their_names(tmp_path: Path) -> None:
    folder = published_data() / "regmix"
    for stem in ("mixture", "pile_loss"):
        lines = (folder / f"train_{stem}_1m.csv").read_text().splitlines()
        (tmp_path / f"test_{stem}_1B.csv").write_text("\n".join(lines[:4]) + "\n")
    assert read_regmix(tmp_path, "1b").labels == {f"regmix/1b/{i}": str(i) for i in (1, 2, 3)}


def test_slimpajama_has_16_missing_cells() -> None:
    found = read_slimpajama(published_data() / "slimpajama")
    assert found.notes == ("missing: 16 losses with an empty cell",)
    assert found.observations.height == 2188 * 8 - 16
    assert found.runs.height == 200
    assert found.runs["mixture_id"].n_unique() == 60
    assert sorted(found.runs["params_total"].unique().to_list()) == [122e6, 310e6, 680e6, 937e6]
    assert found.observations["tokens"].max() == 35.28e9
    label = next(iter(found.labels.values()))
    shares = found.runs.select("^r:.*$").row(0)
    assert [float(share) for share in label.split("-")] == pytest.approx(shares, abs=1e-12)


def test_overtraining_joins_models_and_evaluations_by_name() -> None:
    folder = published_data() / "overtraining"
    found = read_overtraining(folder)
    assert found.runs.height == 98
    assert found.observations.group_by("unit").len().sort("unit").rows() == [
        ("error", 98 * 46),
        ("nats_per_token", 98 * 8),
    ]
    run = found.runs.filter(pl.col("run_id") == "overtraining/rpj-d=96_l=8_h=4-4.0")
    assert run.select("params_total", "params_non_embedding", "corpus", "r:rpj").rows() == [
        (10_569_312.0, 5_727_840.0, "rpj", 1.0)
    ]
    values = found.observations.filter(pl.col("run_id") == run["run_id"][0])
    by_target = dict(values.select("target", "value").iter_rows())
    assert by_target["c4_val"] == 4.8231177076673335
    assert by_target["arc_easy"] == pytest.approx(1 - 0.2664141356945038, abs=1e-15)
    assert values["tokens"].unique().to_list() == [845_544_960.0]
    baselines = read_random_baselines(folder)
    assert baselines["hellaswag"] == 0.75
    tasks = found.observations.filter(pl.col("unit") == "error")["target"].unique()
    assert set(tasks) <= set(baselines)


def test_reading_a_set_again_gives_the_same_tables() -> None:
    first, second = (read_mixinglaws(published_data() / "mixinglaws" / "5Mix") for _ in range(2))
    assert first.runs.equals(second.runs)
    assert first.observations.equals(second.observations)


def test_a_rounded_spelling_is_the_same_run_and_mixture(tmp_path: Path) -> None:
    exact = write_set(tmp_path / "a" / "S", [line("70M_RP_1-0.015625-0.984375", 10, 3.0)])
    short = write_set(tmp_path / "b" / "S", [line("70M_RP_1-0.01562-0.98438", 20, 2.9)])
    one, other = read_mixinglaws(exact), read_mixinglaws(short)
    assert one.runs["run_id"].to_list() == other.runs["run_id"].to_list()
    assert one.runs["mixture_id"].to_list() == other.runs["mixture_id"].to_list()
    assert list(other.labels.values()) == ["RP_1-0.01562-0.98438"]


def test_sizes_of_one_mixture_share_its_id(tmp_path: Path) -> None:
    write_set(tmp_path / "S", [line("70M_RP_1-0.015625-0.984375", 10, 3.0)])
    found = read_mixinglaws(
        write_set(tmp_path / "S", [line("1B_RP_1-.01562-.98438", 10, 2.0)], size="1B")
    )
    assert found.runs["mixture_id"].n_unique() == 1
    assert found.runs["params_total"].to_list() == [70_426_624.0, 1_011_781_632.0]


def test_doubled_lines_trailing_slashes_and_steps_without_a_number_are_noted(
    tmp_path: Path,
) -> None:
    lines = [
        line("70M_0-0.5-0.5", 1000, 3.5),
        line("70M_0-0.5-0.5", 1000, 3.5),
        line("70M_0-0.5-0.5", "1000/", 3.5),
        line("70M_0-0.5-0.5", 2000, ""),
        line("70M_0-0.5-0.5", "last", 3.5),
        line("70M_0-0.5-0.5", "", 3.25),
        "",
    ]
    found = read_mixinglaws(write_set(tmp_path / "S", lines))
    assert found.observations.select("step", "value").rows() == [(1000, 3.5)]
    assert found.notes == (
        "left out: 1 loss at the step `last`; 1 of them repeat one of a numbered step",
        "left out: 1 loss without a step; 0 of them repeat one of a numbered step",
        "missing: 1 loss with an empty cell",
        "doubled: 2 losses had been there, with the same value",
    )


def test_a_row_sum_of_102_percent_is_divided_and_noted(tmp_path: Path) -> None:
    found = read_mixinglaws(write_set(tmp_path / "S", [line("70M_0-0.52-0.5", 1000, 3.5)]))
    assert found.runs.select("^r:.*$").row(0) == pytest.approx((0.52 / 1.02, 0.5 / 1.02))
    assert found.notes == ("shares sum to 1.02 to 1.02; 1 of 1 rows were divided by their sum",)


def test_a_number_in_a_runs_name_is_no_share(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "S", [line("70M_RP-7-0.25-0.75", 1000, 3.5)])
    found = read_mixinglaws(folder, domains=("web", "code"))
    assert found.runs.select("r:web", "r:code").rows() == [(0.25, 0.75)]


GOOD = line("70M_0-0.5-0.5", 1000, 3.5)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (line("70M_0-0.5-0.5", 1000, 3.6), "is 3.5 in .*70M.txt, line 1, and 3.6 in .*line 2"),
        ("garbage", "three cells between tabs, found 'garbage', in .*70M.txt, line 2"),
        (line("70M_0-0.5-0.5", 1000, "abc"), "finite number, found .*line 2"),
        (line("70M_0-0.5-0.5", 1000, "inf"), "finite number, found .*line 2"),
        (line("70M_0-0.5-0.5", "best", 3.5), "<run folder>/<step>, found .*line 2"),
        (line("noshares", 1000, 3.5), "<run folder>/<step>, found .*line 2"),
        (line("70M_1-1.0", 1000, 3.5), "must end in 2 shares, found '70M_1-1.0', in .*line 2"),
        ("ckpts/Set/70M_0-0.5-0.5/1000\t\t3.5", "name its validation file, found .*line 2"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, bad: str, message: str) -> None:
    folder = write_set(tmp_path / "S", [GOOD, bad])
    with pytest.raises(TableError, match=message):
        read_mixinglaws(folder, domains=("a", "b"))


def test_shares_that_are_no_mixture_are_named(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "S", [GOOD, line("70M_1-0.6-0.6", 1000, 3.5)])
    with pytest.raises(MixtureError, match=r"'1-0.6-0.6' sum to 1.2, in .*70M.txt, line 2"):
        read_mixinglaws(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe\x00\x01", "UTF-8 text, in .*70M.txt, line 1"),
        (b"a\tb\t1\n\x00\x00", "is binary, in .*70M.txt, line 2"),
        (b"", "is empty, in .*70M.txt"),
    ],
)
def test_a_file_that_is_no_table_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "70M.txt").write_bytes(content)
    with pytest.raises(TableError, match=message):
        read_mixinglaws(tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="found none, in"):
        read_mixinglaws(tmp_path)
    with pytest.raises(TableError, match=r"test_mixture_60m\.csv"):
        read_regmix(tmp_path, "60m")
    with pytest.raises(TableError, match=r"runs\.csv"):
        read_slimpajama(tmp_path)
    with pytest.raises(TableError, match="models/"):
        read_overtraining(tmp_path)
    with pytest.raises(TableError, match=r"eval_metadata\.csv"):
        read_random_baselines(tmp_path)
    (tmp_path / "13B.txt").write_text(GOOD)
    with pytest.raises(TableError, match=r"must be a model size, .*13B\.txt"):
        read_mixinglaws(tmp_path)


def write_regmix(folder: Path, mixtures: str, losses: str) -> Path:
    (folder / "train_mixture_1m.csv").write_text(f"index,train_the_pile_a,train_b\n{mixtures}")
    (folder / "train_pile_loss_1m.csv").write_text(f"index,metric/the_pile_a_val_loss\n{losses}")
    return folder


def test_rows_of_one_regmix_file_alone_are_left_out_and_noted(tmp_path: Path) -> None:
    found = read_regmix(write_regmix(tmp_path, "1,0.5,0.5\n2,0.1,0.9\n2,0.1,0.9\n", "3,5\n2,4\n"))
    assert found.labels == {"regmix/train/2": "2"}
    assert found.observations["value"].to_list() == [4.0]
    assert found.notes == (
        "doubled: 1 row of train_mixture_1m.csv",
        "left out: 1 row of train_mixture_1m.csv not in train_pile_loss_1m.csv",
        "left out: 1 row of train_pile_loss_1m.csv not in train_mixture_1m.csv",
    )


def test_columns_that_are_neither_shares_nor_losses_are_ignored_and_noted(tmp_path: Path) -> None:
    (tmp_path / "runs.csv").write_text(
        "comment,weight_a,weight_b,model_size,n_tokens,x_loss\nfirst,0.25,0.75,1e6,2e9,3.5\n"
    )
    found = read_slimpajama(tmp_path)
    assert found.labels == {"slimpajama/1000000/0.25-0.75": "0.25-0.75"}
    assert found.notes == ("ignored columns of runs.csv: comment",)


def test_a_size_with_much_dirt_is_read_beside_a_clean_one(tmp_path: Path) -> None:
    """What the README says of `1B.txt`: doubled lines, a sum of 1.02, a share of five digits."""
    tuned = "-.125-.25-.140625-.25-.09375-.125-.01562"
    clean = [line("70M_RP_998-0.125-0.25-0.140625-0.25-0.09375-0.125-0.015625", 1000, 3.5)]
    dirty = [line(f"1B_RP_998{tuned}", 1000, 2.5), line("1B_RP_999-.67-.15-.065-.045-.045-.025-.02", 1000, 2.6)]  # fmt: skip
    write_set(tmp_path / "RedPajama", clean)
    found = read_mixinglaws(write_set(tmp_path / "RedPajama", [*dirty, *dirty], size="1B"))
    small, large, other = found.runs["mixture_id"].to_list()
    assert small == large != other
    assert found.labels["RedPajama/1B/RP_998-0.125-0.25-0.140625-0.25-0.09375-0.125-0.015625"] == (
        f"RP_998{tuned}"
    )
    assert found.notes == (
        "shares sum to 1 to 1.02; 1 of 3 rows were divided by their sum",
        "doubled: 2 losses had been there, with the same value",
    )


@pytest.mark.parametrize(
    ("mixtures", "losses", "message"),
    [
        ("1,0.5,0.5\n1,0.4,0.6\n", "1,5\n", "index 1 must be there once, .*line 3.*line 2"),
        ("1,0.5,x\n", "1,5\n", "`train_b` must be a finite number, found 'x', in .*line 2"),
        ("1,0.5,0.4\n", "1,5\n", "sum to 0.9, in .*line 2"),
        ("1,0.5,0.5\n", "2,5\n", "must share values of `index`"),
        ("1,0.5,0.5\n", "1,\n", "must have losses"),
        ("1,0.5,0.5,7\n", "1,5\n", "must be CSV"),
        ("", "1,5\n", "must have rows"),
    ],
)
def test_malformed_regmix_files_are_named(
    tmp_path: Path, mixtures: str, losses: str, message: str
) -> None:
    with pytest.raises(MixlawError, match=message):
        read_regmix(write_regmix(tmp_path, mixtures, losses))


def write_model(folder: Path, **changes: object) -> Path:
    model: dict[str, object] = {
        "name": "m",
        "dataset_name": "rpj",
        "hyperparameters": {"params": 10, "params_no_embed": 5, "tokens": 200, "lr": 0.1},
        "results": [{"loss": 3.0, "val_data": ["a/c4_val/x.tar"]}],
    }
    (folder / "models").mkdir(exist_ok=True)
    (folder / "models" / "m.json").write_text(json.dumps({**model, **changes}))
    return folder


def test_a_model_without_an_evaluation_keeps_its_losses(tmp_path: Path) -> None:
    found = read_overtraining(write_model(tmp_path))
    assert found.observations.select("target", "value").rows() == [("c4_val", 3.0)]
    assert found.notes == ("missing: 1 model without an evaluation",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ""}, "`name` must be a text, found '', in .*m.json"),
        ({"hyperparameters": 3}, "must have `hyperparameters`, in .*m.json"),
        ({"hyperparameters": {"params": "x"}}, "`params` must be a number, found 'x', in .*m.json"),
        ({"results": []}, "must have a list of `results`, in .*m.json"),
        ({"results": [{"loss": 3.0}]}, "must name its `val_data`, in .*m.json"),
        ({"results": [{"val_data": ["a/b/c"]}]}, "`loss` must be a number, found None"),
    ],
)
def test_malformed_models_are_named(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(TableError, match=message):
        read_overtraining(write_model(tmp_path, **changes))


def test_json_that_does_not_parse_is_named(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "models" / "m.json").write_text("{\n  broken")
    with pytest.raises(TableError, match=r"must be JSON \(.*\), in .*m.json, line 2"):
        read_overtraining(tmp_path)
