import json
import tomllib
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixlaw.domains import Domain
from mixlaw.errors import DomainError, StudyError
from mixlaw.fit.law import fit_law
from mixlaw.laws.library import MIXING_LAWS
from mixlaw.laws.tied import TiedLaw
from mixlaw.mixtures import Mixture
from mixlaw.observations import PROPORTION_PREFIX, decode_stages, encode_stages
from mixlaw.study import Study
from mixlaw.study.domain_changes import (
    DomainChange,
    apply_changes,
    change_shares,
    tie_law,
    unidentified,
)
from mixlaw.study.domain_edits import edit_config
from simulated import make_tables, simulate_study
from tiny_studies import Answer, call_mixlaw

MERGE = DomainChange(kind="merge", before=("a", "b"), after=("ab",), shares={})
SPLIT = DomainChange(kind="split", before=("c",), after=("c1", "c2"), shares={"c1": 0.7, "c2": 0.3})
ADD = DomainChange(kind="add", before=(), after=("new",), shares={})


def shares(runs: pl.DataFrame) -> dict[str, list[float]]:
    return {
        name.removeprefix(PROPORTION_PREFIX): runs[name].to_list()
        for name in runs.columns
        if name.startswith(PROPORTION_PREFIX)
    }


def two_runs() -> pl.DataFrame:
    r_RM = np.array([[0.2, 0.3, 0.5], [0.6, 0.1, 0.3]])
    return make_tables(("a", "b", "c"), ("t",), r_RM, np.ones((2, 1)))[0]


# ---- what becomes of the shares


def test_merged_shares_add_up_a_new_domain_has_none_and_a_split_one_is_divided() -> None:
    found = shares(apply_changes(two_runs(), [MERGE, SPLIT, ADD]))
    assert set(found) == {"ab", "c1", "c2", "new"}
    assert found["ab"] == pytest.approx([0.5, 0.7])
    assert found["c1"] == pytest.approx([0.35, 0.21])
    assert found["c2"] == pytest.approx([0.15, 0.09])
    assert found["new"] == [0.0, 0.0]


def test_runs_from_after_a_change_keep_their_own_shares() -> None:
    later, _ = make_tables(("ab", "c1", "c2"), ("t",), np.array([[0.4, 0.1, 0.5]]), np.ones((1, 1)))
    found = shares(apply_changes(later, [MERGE, SPLIT]))
    assert (found["ab"], found["c1"], found["c2"]) == ([0.4], [0.1], [0.5])


def test_mixtures_get_the_id_of_their_new_shares_and_stages_change_too() -> None:
    runs = two_runs().with_columns(
        stages=pl.Series([None, encode_stages([(5, Mixture.of({"a": 1.0, "b": 0.0, "c": 0.0}))])])
    )
    changed = apply_changes(runs, [MERGE])
    new_id = Mixture.of({"ab": 0.5, "c": 0.5}).mixture_id
    assert changed["mixture_id"][0] == new_id
    assert changed["mixture_id"][1] == runs["mixture_id"][1]  # a schedule has its own
    assert dict(decode_stages(changed["stages"][1])[0][1]) == {"ab": 1.0, "c": 0.0}


@given(st.lists(st.floats(0.01, 1), min_size=3, max_size=3), st.permutations([MERGE, SPLIT, ADD]))
def test_shares_sum_to_one_after_any_changes_in_any_order(
    raw: list[float], changes: list[DomainChange]
) -> None:
    total = sum(raw)
    found = change_shares(dict(zip("abc", (v / total for v in raw), strict=True)), changes)
    assert sum(found.values()) == pytest.approx(1.0)
    assert min(found.values()) >= 0


def test_parts_are_told_apart_once_runs_differ_in_their_ratio() -> None:
    old = apply_changes(two_runs(), [SPLIT])
    assert unidentified(old, [SPLIT]) == (("c1", "c2"),)
    r_RM = np.array([[0.3, 0.3, 0.3, 0.1], [0.3, 0.3, 0.1, 0.3]])
    new, _ = make_tables(("a", "b", "c1", "c2"), ("t",), r_RM, np.ones((2, 1)))
    both = pl.concat([old, new], how="diagonal").unique("run_id", keep="any")
    assert unidentified(new, [SPLIT]) == ()
    assert unidentified(both.head(1), [SPLIT]) == (("c1", "c2"),)


# ---- a law that does not tell them apart


def test_a_tied_law_is_the_law_of_the_sum_and_its_derivatives_are_right() -> None:
    inner = MIXING_LAWS["m4"]
    law = tie_law(inner, ("a", "b1", "b2", "c"), [("b1", "b2")])
    assert isinstance(law, TiedLaw)
    theta_P = np.array([1.2, 0.4, -0.8, 0.3])
    r_RM = np.random.default_rng(0).dirichlet(np.ones(4), size=5)
    merged_RM = np.column_stack([r_RM[:, 0], r_RM[:, 1] + r_RM[:, 2], r_RM[:, 3]])
    assert law.predict(r_RM, theta_P) == pytest.approx(inner.predict(merged_RM, theta_P))
    gradient_RM = law.gradient(r_RM, theta_P)
    for j in range(4):
        shift_M = 1e-6 * (np.arange(4) == j)
        ends = law.predict(r_RM + shift_M, theta_P) - law.predict(r_RM - shift_M, theta_P)
        assert gradient_RM[:, j] == pytest.approx(ends / 2e-6, abs=1e-7)
    found = law.curvature(r_RM[0], theta_P)
    assert found is not None
    diag_M, factor_KM = found
    hessian_MM = np.diag(diag_M) + factor_KM.T @ factor_KM
    for j in range(4):
        shift_M = 1e-5 * (np.arange(4) == j)
        ends = law.gradient(r_RM[:1] + shift_M, theta_P) - law.gradient(r_RM[:1] - shift_M, theta_P)
        assert hessian_MM[j] == pytest.approx(ends[0] / 2e-5, abs=1e-6)


def test_a_fit_of_tied_parts_equals_the_fit_of_the_domain_before_the_split() -> None:
    study = simulate_study(0, num_domains=3, num_mixtures=10, num_extra=0)
    before = fit_law("m4", study.runs, study.observations, num_draws=2)
    change = DomainChange(
        kind="split", before=("d2",), after=("x", "y"), shares={"x": 0.8, "y": 0.2}
    )
    runs = apply_changes(study.runs, [change])
    law = tie_law(MIXING_LAWS["m4"], ("d0", "d1", "x", "y"), unidentified(runs, [change]))
    after = fit_law(law, runs, study.observations, num_draws=2)
    for x in (0.0, 0.1, 0.4):
        r_RM = np.array([[0.3, 0.3, x, 0.4 - x]])
        assert after.losses(r_RM) == pytest.approx(before.losses(np.array([[0.3, 0.3, 0.4]])))


# ---- mixlaw.toml


TOML = """# our study
[[domains]]
name = "a"            # from the crawl
available_tokens = 100
max_epochs = 1

[[domains]]
name = "b"
available_tokens = 300
max_epochs = 3

[[domains]]
name = "c"            # stays

[reference]
proportions = { a = 0.2, b = 0.3, c = 0.5 }

[constraints]
floor = { a = 0.05 }  # at least
cap = { a = 0.3, b = 0.4 }
groups = ["a+b>=0.3", "a+b+c<=1"]
"""


def test_the_file_keeps_its_comments_and_its_bounds_follow_the_domains() -> None:
    domains = [Domain(name="ab", available_tokens=400, max_epochs=2.5), Domain(name="c")]
    text, notes = edit_config(TOML, MERGE, domains)
    assert "# our study" in text
    assert "# stays" in text
    assert "# at least" in text
    assert '"ab>=0.3"' in text
    assert '"c+ab<=1"' in text
    assert "available_tokens = 400" in text
    assert "max_epochs = 2.5" in text
    assert any("cap: a, b became ab 0.7" in note for note in notes)
    assert any("proportions: a, b became ab 0.5" in note for note in notes)


def test_what_was_fixed_of_one_merged_domain_alone_does_not_fix_both() -> None:
    fixed = TOML.replace("[constraints]", "[constraints]\nfixed = { a = 0.2 }")
    text, notes = edit_config(fixed, MERGE, [Domain(name="ab"), Domain(name="c")])
    assert tomllib.loads(text)["constraints"]["fixed"] == {}
    assert any("fixed: dropped that of a, the rest had none" in note for note in notes)


def test_merged_caps_allow_no_more_than_everything() -> None:
    text, _ = edit_config(
        TOML.replace("a = 0.3, b = 0.4", "a = 0.7, b = 0.6"), MERGE, [Domain(name="ab")]
    )
    assert tomllib.loads(text)["constraints"]["cap"] == {"ab": 1.0}


def test_bytes_per_token_that_were_given_stay_given() -> None:
    split = DomainChange(kind="split", before=("b",), after=("x", "y"), shares={"x": 0.5, "y": 0.5})
    given = TOML.replace("max_epochs = 3", "max_epochs = 3\nbytes_per_token = 2.5")
    parts = [Domain(name=name, bytes_per_token=2.5) for name in ("x", "y")]
    text, _ = edit_config(given, split, [Domain(name="a"), *parts, Domain(name="c")])
    assert text.count("bytes_per_token = 2.5") == 2
    counted, _ = edit_config(TOML, split, [Domain(name="a"), *parts, Domain(name="c")])
    assert "bytes_per_token" not in counted


def test_a_bound_of_one_merged_domain_alone_is_refused() -> None:
    other = TOML.replace("a+b>=0.3", "a+c>=0.3")
    with pytest.raises(StudyError, match="holds a and not the others"):
        edit_config(other, MERGE, [Domain(name="ab"), Domain(name="c")])


# ---- in a study


def run_cli(*arguments: str) -> Answer:
    return call_mixlaw(*arguments, cwd=Path())


@pytest.fixture
def study(tmp_path: Path) -> Study:
    simulated = simulate_study(1, num_domains=4, num_mixtures=12, num_extra=0, num_heldout=2)
    wide = simulated.observations.pivot(on="target", index="run_id", values="value")
    table = wide.rename({f"d{j}": f"loss/d{j}" for j in range(4)}).join(
        simulated.runs.drop("mixture_id", "role"), on="run_id"
    )
    table.write_csv(tmp_path / "runs.csv")
    made = Study.for_import(tmp_path / "study")
    made.import_tables(
        tmp_path / "runs.csv", proportions="r:{domain}", losses="loss/{target}", key="run_id"
    )
    opened = Study.open(tmp_path / "study")
    file = opened.path / "mixlaw.toml"
    file.write_text(file.read_text().replace('law = "select"', 'law = "m4"'))
    return Study.open(opened.path)


def test_a_merge_keeps_runs_and_objective_says_what_fell_and_can_be_taken_back(
    study: Study,
) -> None:
    study.fit()
    before = (study.path / "mixlaw.toml").read_text()
    changed = study.merge_domains(["d0", "d1"], "prose")
    assert any("fit" in what and "'d0' and 'd1'" in what for what in changed.fell)
    assert any("[objective] weights" in note for note in changed.notes)
    again = Study.open(study.path)
    fit = again.fit()
    assert set(fit.domains) == {"prose", "d2", "d3"}
    assert fit.targets == ("d0", "d1", "d2", "d3")
    assert set(again.question.objective(fit.targets).shares) == {"d0", "d1", "d2", "d3"}
    assert again.tables()[0].height == 20
    undone = again.undo_domain_change()
    assert undone.after == ("prose",)
    assert (study.path / "mixlaw.toml").read_text() == before
    assert set(Study.open(study.path).fit().domains) == {"d0", "d1", "d2", "d3"}


def test_a_split_is_marked_unidentified_in_fit_and_optimum(study: Study) -> None:
    study.split_domain("d3", ["x", "y"], shares=[0.25, 0.75])
    again = Study.open(study.path)
    fit = again.fit()
    assert any("'x' and 'y' can't be told apart" in note for note in fit.notes)
    r_RM = np.array([[0.2, 0.2, 0.2, 0.4, 0.0], [0.2, 0.2, 0.2, 0.0, 0.4]])
    order = [("d0", "d1", "d2", "x", "y").index(name) for name in fit.domains]
    first_T, second_T = fit.losses(r_RM[:, order])
    assert first_T == pytest.approx(second_T)
    assert any("can't be told apart" in note for note in again.optimize().notes)


def test_a_named_domain_has_no_share_and_the_fit_says_that_it_knows_nothing_of_it(
    study: Study,
) -> None:
    study.name_domain("math", available_tokens=2e9)
    again = Study.open(study.path)
    assert "math" in again.question.names
    assert again.question.allowed.caps[again.question.names.index("math")] == 0.0
    assert any("no run has trained on 'math'" in note for note in again.fit().notes)


def test_wrong_names_are_refused_and_change_nothing(study: Study) -> None:
    before = (study.path / "mixlaw.toml").read_text()
    for wrong in (
        lambda: study.merge_domains(["d0", "nowhere"], "x"),
        lambda: study.merge_domains(["d0"], "x"),
        lambda: study.merge_domains(["d0", "d0"], "x"),
        lambda: study.merge_domains(["d0", "d1"], "d2"),
        lambda: study.split_domain("d0", ["d1", "x"]),
        lambda: study.split_domain("d0", ["x"]),
        lambda: study.split_domain("d0", ["x", "y"], shares=[0.5, 0.6]),
        lambda: study.name_domain("d0"),
    ):
        with pytest.raises(DomainError):
            wrong()
    assert (study.path / "mixlaw.toml").read_text() == before
    assert not study.domain_changes
    with pytest.raises(StudyError, match="no change"):
        study.undo_domain_change()


def test_an_edited_file_is_not_overwritten_by_taking_back(study: Study) -> None:
    study.merge_domains(["d0", "d1"], "prose")
    file = study.path / "mixlaw.toml"
    file.write_text(file.read_text() + "\n# my note\n")
    with pytest.raises(StudyError, match="edited since"):
        Study.open(study.path).undo_domain_change()
    assert "# my note" in file.read_text()


def test_a_change_that_was_cut_off_between_its_files_can_be_taken_back(study: Study) -> None:
    file = study.path / "mixlaw.toml"
    before = file.read_text()
    study.merge_domains(["d0", "d1"], "prose")
    file.write_text(before)  # as if the machine had gone down before the second file
    Study.open(study.path).undo_domain_change()
    again = Study.open(study.path)
    assert not again.domain_changes
    assert file.read_text() == before
    assert set(again.fit().domains) == {"d0", "d1", "d2", "d3"}


def test_the_commands_say_it_and_list_shows_it(study: Study) -> None:
    folder = str(study.path)
    merged = run_cli("domains", "merge", "d0", "d1", "--into", "prose", "--study", folder)
    assert merged.code == 0, merged.err
    assert "their shares add up" in merged.out
    split = json.loads(
        run_cli(
            "domains", "split", "d3", "--into", "x,y", "--shares", "0.5,0.5", "--json",
            "--study", folder,
        ).out
    )  # fmt: skip
    assert split["change"] == "'d3' split into 'x' 0.5, 'y' 0.5 of its share in earlier runs"
    listed = run_cli("domains", "list", "--study", folder).out
    assert "change: 'd0' and 'd1' merged into 'prose'" in listed
    wrong = run_cli(
        "domains", "split", "d2", "--into", "p,q", "--shares", "half", "--study", folder
    )
    assert wrong.code == 1
    assert "Traceback" not in wrong.err


def test_a_damaged_record_is_named(study: Study) -> None:
    (study.path / "domain_changes.json").write_text("{")
    with pytest.raises(StudyError, match="changes of domains can't be read"):
        study.tables()
