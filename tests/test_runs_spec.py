"""What a run is: its stages, its start, and the run_id that all of it decides."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixlaw.errors import RunError
from mixlaw.mixtures import Mixture
from mixlaw.runs.spec import RunSpec, Stage, stages_of

WEB, CODE = Mixture.of({"web": 0.75, "code": 0.25}), Mixture.of({"web": 0.25, "code": 0.75})
WIKI = Mixture.of({"wiki": 1.0})


def make_spec(**changes: Any) -> RunSpec:
    spec = RunSpec(
        mixture=Mixture.of({"b": 0.25, "a": 0.75}),
        params=50_000,
        steps=10,
        tokens_per_step=32,
        eval_steps=(0, 5, 10),
        corpus="x",
        tokenizer="bytes",
        trainer="proxy/1-T128-V192-cpu",
    )
    return replace(spec, **changes)


def test_runs_have_the_run_ids_of_the_versions_before_stages() -> None:
    # Of commit af278a6, before runs had stages or starts: those runs need not be trained again.
    assert make_spec().run_id == "5e92244b14d32795"
    assert make_spec(learning_rate=1e-3).run_id == "bfc95dcd2b5dffad"
    assert make_spec(seed=1).run_id == "491063ee2b09ddd5"
    assert set(make_spec().to_json()) == {
        *("mixture", "params", "steps", "tokens_per_step", "eval_steps", "seed", "schedule"),
        *("learning_rate", "corpus", "tokenizer", "trainer", "precision"),
    }


def test_everything_that_decides_losses_changes_the_run_id() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"later_stages": (Stage(from_step=5, mixture=CODE),)},
        {"later_stages": (Stage(from_step=6, mixture=CODE),)},
        {"later_stages": (Stage(from_step=5, mixture=WIKI),)},
        {"start": "run:" + "0" * 16},
        {"start": "file:" + "0" * 16},
        {"token_limits": {"web": 100}},
        {"token_limits": {"web": 101}},
    ]
    assert len({make_spec(mixture=WEB, **change).run_id for change in changes}) == len(changes)


weights = st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=3, max_size=3).filter(any)


@given(
    weights=st.lists(weights, min_size=1, max_size=5),
    start=st.none() | st.sampled_from(["run:0123456789abcdef", "file:fedcba9876543210"]),
    limits=st.dictionaries(st.sampled_from(["a", "b", "c"]), st.integers(1, 10**9)),
)
def test_a_spec_comes_back_from_json(
    weights: list[list[float]], start: str | None, limits: dict[str, int]
) -> None:
    stages = [Mixture.normalized(dict(zip("abc", r, strict=True))) for r in weights]
    spec = make_spec(
        mixture=stages[0],
        later_stages=stages_of(stages, [2 * k + 2 for k in range(len(stages))]),
        start=start,
        token_limits=limits,
    )
    again = RunSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    assert again.run_id == spec.run_id


def test_a_constant_schedule_is_the_run_of_its_mixture() -> None:
    constant = make_spec(mixture=WEB)
    turned = Mixture.of({"code": 0.25, "web": 0.75})
    staged = make_spec(mixture=WEB, later_stages=stages_of([WEB, turned, WEB], [2, 5, 10]))
    assert staged.run_id == constant.run_id
    assert staged.later_stages == ()
    back = make_spec(mixture=WEB, later_stages=stages_of([WEB, CODE, CODE, WEB], [2, 5, 7, 10]))
    assert back.stages == ((2, WEB), (7, CODE), (10, WEB))
    assert [(stage.from_step, stage.mixture) for stage in back.later_stages] == [
        (2, CODE),
        (7, WEB),
    ]


def test_the_mean_mixture_is_that_of_all_tokens() -> None:
    spec = make_spec(mixture=WEB, later_stages=stages_of([WEB, WIKI], [4, 10]))
    assert spec.mean_mixture == Mixture.of({"web": 0.3, "code": 0.1, "wiki": 0.6})
    assert spec.domains == ("web", "code", "wiki")
    assert make_spec(mixture=WEB).mean_mixture is make_spec(mixture=WEB).mixture


def test_replicates_share_a_mixture_id_and_schedules_of_the_same_tokens_do_not() -> None:
    forth = make_spec(mixture=WEB, later_stages=(Stage(from_step=5, mixture=CODE),))
    back = make_spec(mixture=CODE, later_stages=(Stage(from_step=5, mixture=WEB),))
    assert forth.mean_mixture == back.mean_mixture == Mixture.of({"web": 0.5, "code": 0.5})
    assert forth.mixture_id == replace(forth, seed=7).mixture_id
    assert len({forth.mixture_id, back.mixture_id, forth.mean_mixture.mixture_id}) == 3
    assert make_spec(mixture=WEB).mixture_id == WEB.mixture_id


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"later_stages": (Stage(from_step=0, mixture=CODE),)},
            "stages must begin after one another, between step 0 and the last step 10, found [0]",
        ),
        (
            {"later_stages": stages_of([WEB, CODE, WEB], [6, 6, 10])},
            "stages must begin after one another, between step 0 and the last step 10, found [6, 6]",
        ),
        (
            {"later_stages": (Stage(from_step=10, mixture=CODE),)},
            "stages must begin after one another, between step 0 and the last step 10, found [10]",
        ),
        (
            {"start": "weights.safetensors"},
            "a run's start must be `run:` or `file:` and 16 hexadecimal digits, found"
            " 'weights.safetensors'\n"
            "  do: take `start_of_run` or `keep_checkpoint` of mixlaw.runs.starts",
        ),
        (
            {"token_limits": {"wiki": 5}},
            "a run's token_limits must be positive numbers of tokens of its domains, found 5 for"
            " 'wiki'\n  do: its domains are a, b",
        ),
        (
            {"token_limits": {"a": 0}},
            "a run's token_limits must be positive numbers of tokens of its domains, found 0 for"
            " 'a'\n  do: its domains are a, b",
        ),
        ({"token_limits": {"a": 0.5}}, "a run's token_limits must be a whole number, found 0.5"),
    ],
)
def test_what_no_run_can_be_is_said(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RunError) as error:
        make_spec(**changes)
    assert str(error.value) == message


def test_each_mixture_needs_an_end() -> None:
    with pytest.raises(RunError, match="found 1 for 2 mixtures"):
        stages_of([WEB, CODE], [10])


def test_a_spec_of_another_version_is_told() -> None:
    with pytest.raises(RunError, match="'dropout' is missing or unknown"):
        RunSpec.from_json({**make_spec().to_json(), "dropout": 0.1})
    plain = make_spec().to_json()
    del plain["seed"]
    with pytest.raises(RunError, match="'seed' is missing or unknown"):
        RunSpec.from_json(plain)


def test_a_run_names_its_parent_only_where_that_is_a_run() -> None:
    child = make_spec(start="run:0123456789abcdef")
    assert (child.parent, child.parent_run_id) == (("run", "0123456789abcdef"), "0123456789abcdef")
    given_file = make_spec(start="file:0123456789abcdef")
    assert (given_file.parent, given_file.parent_run_id) == (("file", "0123456789abcdef"), None)
    assert make_spec().parent is None
