"""From `[objective]`, `[constraints]` and flags to what is minimized within which limits."""

from dataclasses import replace

import pytest

from mixlaw.config import ConstraintsSection, ObjectiveSection, parse_config
from mixlaw.domains import Scale
from mixlaw.errors import ConfigError, OptimizeError
from mixlaw.mixtures import Mixture
from mixlaw.optimize import (
    GroupBound,
    MeanPlusSpread,
    Objective,
    RelativeLoss,
    TailLoss,
    WeightedLoss,
    WorstLoss,
)
from mixlaw.study.goal import check_modes, make_objective, parse_bound
from mixlaw.study.question import Question

NAMES = ("web", "c+c", "cc")
LOSS = WeightedLoss({"web": 1.0, "prose": 3.0}, {"prose": ("books", "wiki")})
REFERENCE = Mixture.of({"web": 0.5, "c+c": 0.25, "cc": 0.25})


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ("web+cc>=0.3", GroupBound(domains=("web", "cc"), low=0.3)),
        ("c+c+web <= 0.5", GroupBound(domains=("c+c", "web"), high=0.5)),
        ("cc<=1e-1", GroupBound(domains=("cc",), high=0.1)),
    ],
)
def test_a_bound_of_a_group_is_read_whatever_its_domains_are_called(
    text: str, bound: GroupBound
) -> None:
    assert parse_bound(text, NAMES, where="here") == bound


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("web+cc", "a bound of a group must be DOMAIN"),
        ("web>=many", "a bound of a group must be DOMAIN"),
        ("web+code>=0.3", "'code' of the bound 'web.code>=0.3' is no domain"),
        ("web+web>=0.3", "a bound must name each domain once"),
        (">=0.3", "a bound must name each domain once"),
    ],
)
def test_a_bound_that_can_not_be_read_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_bound(text, NAMES, where="here")
    assert caught.value.where == "here"


@pytest.mark.parametrize(
    ("section", "kind"),
    [
        (ObjectiveSection(), WeightedLoss),
        (ObjectiveSection(worst_case=True), WorstLoss),
        (ObjectiveSection(relative_to_reference=True), RelativeLoss),
        (ObjectiveSection(worst_case=True, relative_to_reference=True), WorstLoss),
        (ObjectiveSection(risk_sd=1.0), MeanPlusSpread),
        (ObjectiveSection(risk_sd=0.0), WeightedLoss),
        (ObjectiveSection(cvar=0.9), TailLoss),
    ],
)
def test_each_key_of_the_objective_makes_its_own(section: ObjectiveSection, kind: type) -> None:
    assert type(make_objective(section, LOSS, reference=REFERENCE)) is kind


def test_the_worst_case_is_over_what_has_a_weight_groups_among_it() -> None:
    found = make_objective(ObjectiveSection(worst_case=True), LOSS, reference=None)
    assert isinstance(found, WorstLoss)
    assert found.targets == ("web", "prose")
    assert found.groups == LOSS.groups


@pytest.mark.parametrize(
    "section",
    [
        ObjectiveSection(worst_case=True, cvar=0.9),
        ObjectiveSection(risk_sd=1.0, cvar=0.9),
        ObjectiveSection(relative_to_reference=True, task="swap"),
        ObjectiveSection(worst_case=True, relative_to_reference=True, risk_sd=2.0),
    ],
)
def test_objectives_that_exclude_each_other_are_named(section: ObjectiveSection) -> None:
    with pytest.raises(ConfigError, match="an objective can be one of these") as caught:
        check_modes(section, where="the flags")
    given = [name for name in ("cvar", "task", "risk_sd") if getattr(section, name)]
    assert all(f"`{name}`" in caught.value.problem for name in given)


def test_what_an_objective_needs_must_be_there() -> None:
    with pytest.raises(ConfigError, match="relative to a reference need one"):
        make_objective(ObjectiveSection(relative_to_reference=True), LOSS, reference=None)
    with pytest.raises(ConfigError, match="no fitted error of a task 'swap'"):
        make_objective(ObjectiveSection(task="swap"), LOSS, reference=None)


@pytest.fixture
def question() -> Question:
    config = parse_config(
        {
            "scale": {"tokens": 100},
            "domains": [
                {"name": "web", "available_tokens": 90},
                {"name": "code", "available_tokens": 20},
                {"name": "books", "available_tokens": 30},
            ],
            "constraints": {"fixed": {"books": 0.25}, "groups": ["web+code>=0.5"]},
        },
        where="x",
    )
    return Question.of(config, None, None)


def test_the_constraints_of_a_study_hold_together(question: Question) -> None:
    region = question.constraints.region(question.scale)
    cap = dict(zip(region.names, region.caps, strict=True))
    assert cap["code"] == pytest.approx(0.2)  # 20 tokens of 100
    assert any(str(name) == "cap of code (token supply)" for name in region.constraint_names)
    assert any(name.kind == "fixed" and name.subject == "books" for name in region.constraint_names)


def test_constraints_that_conflict_are_named_with_what_would_help(question: Question) -> None:
    section = replace(question.config.constraints, groups=("web+code<=0.5",))
    asked = replace(question, config=replace(question.config, constraints=section))
    with pytest.raises(OptimizeError, match="can't hold together") as caught:
        asked.constraints.region(asked.scale)
    assert "fixed share of books at 0.25" in caught.value.problem
    assert "group web+code at most 0.5" in caught.value.problem


def test_a_distance_to_a_reference_that_nobody_knows_is_refused() -> None:
    config = parse_config({"domains": [{"name": "a"}, {"name": "b"}]}, where="x")
    section = ConstraintsSection(kl_to_reference=0.1)
    asked = Question.of(replace(config, constraints=section), None, None)
    with pytest.raises(ConfigError, match="a distance to the reference needs one"):
        _ = asked.constraints


def with_constraints(question: Question, section: ConstraintsSection) -> Question:
    return replace(question, config=replace(question.config, constraints=section))


def test_no_distance_to_the_reference_at_all_is_a_limit_like_another(question: Question) -> None:
    for section in (
        ConstraintsSection(kl_to_reference=0.0),
        ConstraintsSection(l1_to_reference=0.0),
    ):
        asked = with_constraints(question, section)
        region = asked.constraints.region(asked.scale)
        reference = asked.compared_reference
        assert reference is not None
        assert region.floors == pytest.approx(list(reference.values()))


def test_a_fixed_share_above_a_cap_that_is_given_is_a_conflict(question: Question) -> None:
    section = ConstraintsSection(fixed={"books": 0.25}, cap={"books": 0.2})
    with pytest.raises(OptimizeError, match="can't hold together") as caught:
        with_constraints(question, section).constraints.region(question.scale)
    assert "cap of books at 0.2" in caught.value.problem


def test_a_baseline_that_is_another_one_is_said_to_be(question: Question) -> None:
    assert "the unimax mixture is the uniform one here, so it has no row" in (
        question.baseline_notes
    )


@pytest.mark.parametrize(
    ("objective", "unit"),
    [
        (LOSS, "nats_per_token"),
        (TailLoss(LOSS), "nats_per_token"),
        (RelativeLoss({"web": 1.0}, REFERENCE), "relative"),
        (WorstLoss(), "nats_per_token"),
        (WorstLoss(reference=REFERENCE), "relative"),
    ],
)
def test_an_objective_knows_its_unit(objective: Objective, unit: str) -> None:
    assert objective.unit("nats_per_token") == unit


def test_only_distinct_baselines_are_compared(question: Question) -> None:
    # 90, 20 and 30 tokens of 100: the caps make the uniform mixture of UniMax and temperature, too
    assert list(question.all_baselines) == ["proportional", "uniform"]
    wide = replace(question, config=replace(question.config, scale=Scale(tokens=40)))
    assert list(wide.all_baselines) == ["proportional", "uniform", "temperature"]
