import math
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixlaw.domains import (
    Domain,
    Scale,
    ShareConversion,
    check_domains,
    convert_shares,
    token_caps,
)
from mixlaw.errors import DesignError, DomainError
from mixlaw.mixtures import Mixture
from mixlaw.observations import check_runs
from mixlaw.study import Study
from mixlaw.study.tokens import proxy_domains, proxy_scale_tokens, target_shares, token_limits
from tiny_studies import TINY, make_study


def test_cap_is_tokens_times_epochs_over_scale_tokens() -> None:
    code = Domain(name="code", available_tokens=3e11, max_epochs=2)
    assert code.cap(Scale(tokens=1e12)) == pytest.approx(0.6)


def test_cap_is_never_above_one() -> None:
    assert Domain(name="web", available_tokens=5e12).cap(Scale(tokens=1e12)) == 1.0


def test_unknown_supply_caps_nothing() -> None:
    assert Domain(name="web").cap(Scale(tokens=1e12)) == 1.0


def test_epochs_count_how_often_a_domain_is_seen() -> None:
    code = Domain(name="code", available_tokens=1e9)
    assert code.epochs(0.25, 1e10) == pytest.approx(2.5)
    assert Domain(name="web").epochs(0.25, 1e10) is None


def test_caps_of_known_and_unknown_supplies_go_by_name() -> None:
    domains = (Domain(name="a", available_tokens=4e8), Domain(name="b"))
    assert token_caps(domains, Scale(tokens=1e9)) == {"a": 0.4, "b": 1.0}


def test_too_little_text_for_the_scale_says_how_much_there_is() -> None:
    domains = (
        Domain(name="a", available_tokens=2e8, max_epochs=2),
        Domain(name="b", available_tokens=1e8),
    )
    with pytest.raises(DomainError) as error:
        token_caps(domains, Scale(tokens=1e9))
    assert str(error.value) == (
        "the domains must hold the 1e+09 tokens of the scale, but with the epochs that are allowed"
        " they hold 5e+08\n"
        "  do: raise `max_epochs`, plan fewer tokens, or give `available_tokens` in [[domains]] where the corpus is only a sample of what there is"
    )


def test_supply_that_fits_exactly_is_allowed() -> None:
    names = [f"d{i}" for i in range(10)]
    domains = [Domain(name=name, available_tokens=1e8) for name in names]
    assert token_caps(domains, Scale(tokens=1e9)) == dict.fromkeys(names, 0.1)


@pytest.mark.parametrize(
    "field", ["available_tokens", "documents", "max_epochs", "bytes_per_token"]
)
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_quantities_must_be_positive_and_finite(field: str, value: float) -> None:
    with pytest.raises(DomainError) as error:
        Domain(name="web", **{field: value})
    assert str(error.value) == (
        f"{field} must be a positive number, found {value}, in domain 'web'\n"
        f"  do: correct `{field}`, or leave it out where it is not known"
    )


@pytest.mark.parametrize(
    "name", ["", "  ", "a\nb", "a\x00", "a\x7f", "a\x85b", "a\u2028b", "\ud83d"]
)
def test_names_that_no_table_or_file_can_hold_are_refused(name: str) -> None:
    with pytest.raises(DomainError, match="a domain's name must be printable text"):
        Domain(name=name)


@pytest.mark.parametrize(
    "name",
    ["<script>alert(1)</script>", "$(id)", "../x", "a'b\"c", "π", "👨‍👩‍👧", "r:web"],
)
def test_names_are_data(name: str) -> None:
    assert Domain(name=name).name == name


@pytest.mark.parametrize(
    ("field", "value"), [("tokens", 0.0), ("params", -1.0), ("tokens", math.nan)]
)
def test_scale_must_be_positive(field: str, value: float) -> None:
    with pytest.raises(DomainError) as error:
        Scale(**{"tokens": 1e9, field: value})
    assert str(error.value) == f"{field} of the scale must be positive, found {value}"


def test_one_domain_is_no_mixture() -> None:
    with pytest.raises(DomainError) as error:
        check_domains([Domain(name="web")])
    assert str(error.value) == (
        "a mixture needs at least two domains, found 1\n"
        "  do: add domains with `mixlaw domains add NAME PATH...`"
    )


def test_domain_names_differ() -> None:
    with pytest.raises(DomainError) as error:
        check_domains([Domain(name="web"), Domain(name="code"), Domain(name="web")])
    assert str(error.value) == "domain names must differ, but 'web' is there 2 times"


# ---------------------------------------------------------------- tokens of two tokenizers

BYTES = {"web": 1.0, "code": 1.0, "books": 1.0}
TARGET = {"web": 4.0, "code": 2.0, "books": 4.0}


def test_shares_convert_through_bytes() -> None:
    # 0.5 x 4, 0.25 x 2 and 0.25 x 4 bytes are 2, 0.5 and 1 of 3.5.
    shares = convert_shares({"web": 0.5, "code": 0.25, "books": 0.25}, TARGET, BYTES)
    assert shares == pytest.approx({"web": 2 / 3.5, "code": 0.5 / 3.5, "books": 1 / 3.5})


@given(st.lists(st.floats(0.01, 1.0), min_size=3, max_size=3))
def test_converting_there_and_back_changes_nothing(values: list[float]) -> None:
    shares = {n: v / sum(values) for n, v in zip(BYTES, values, strict=True)}
    conversion = ShareConversion(proxy={"web": 2.2, "code": 2.9, "books": 2.5}, target=TARGET)
    assert conversion.to_target(conversion.to_proxy(shares)) == pytest.approx(shares)


def test_shares_need_the_bytes_of_every_domain() -> None:
    with pytest.raises(DomainError, match="those of 'code' are not given"):
        convert_shares({"web": 0.5, "code": 0.5}, BYTES, {"web": 4.0})


DOMAINS = """
[[domains]]
name = "web"
bytes_per_token = 4
max_epochs = 4
[[domains]]
name = "code"
bytes_per_token = 2
max_epochs = 4
[[domains]]
name = "books"
bytes_per_token = 4
max_epochs = 4
[scale]
tokens = 80000
params = 3000
"""


def other_tokenizer(folder: Path, *, config: str = DOMAINS) -> Study:
    return make_study(folder / "study", config=TINY + config)


def test_supply_and_caps_are_of_the_target_tokenizers_tokens(tmp_path: Path) -> None:
    study = other_tokenizer(tmp_path)
    assert study.corpus is not None
    counted = {domain.name: domain.train_tokens for domain in study.corpus.domains}  # bytes
    found = {domain.name: domain.available_tokens for domain in study.question.domains}
    assert found == pytest.approx(
        {"web": counted["web"] / 4, "code": counted["code"] / 2, "books": counted["books"] / 4}
    )
    assert study.question.caps["books"] == pytest.approx(
        min(1.0, counted["books"] / 4 * 4 / 80_000)
    )


def test_what_is_given_is_not_converted(tmp_path: Path) -> None:
    given = DOMAINS.replace('name = "web"', 'name = "web"\navailable_tokens = 12345')
    study = other_tokenizer(tmp_path, config=given)
    assert study.question.domains[0].available_tokens == 12345


def test_a_design_in_target_tokens_is_trained_in_the_proxies_and_read_back(tmp_path: Path) -> None:
    study = other_tokenizer(tmp_path)
    plan = study.plan()
    conversion = study.question.conversion
    assert conversion is not None
    specs = [run.spec for run in plan.runs if run.role == "design"]
    assert conversion.to_target(specs[0].mixture) == pytest.approx(dict(plan.design.mixtures[0]))
    trained = pl.DataFrame(
        {"run_id": [spec.run_id for spec in specs], "origin": "trained", "role": "design",
         "mixture_id": [spec.mixture.mixture_id for spec in specs]}
        | {f"r:{name}": [spec.mixture[name] for spec in specs] for name in BYTES}
    )  # fmt: skip
    runs = target_shares(check_runs(trained), study.config, study.corpus)
    assert set(runs["mixture_id"]) == {mixture.mixture_id for mixture in plan.design.mixtures}
    first = {name: runs[f"r:{name}"][0] for name in BYTES}
    assert first == pytest.approx(dict(plan.design.mixtures[0]))


def test_the_scales_tokens_are_counted_by_the_proxies_tokenizer(tmp_path: Path) -> None:
    reference = "[reference]\nproportions = { web = 0.5, code = 0.25, books = 0.25 }\n"
    study = other_tokenizer(tmp_path, config=DOMAINS + reference)
    # 3.5 bytes per target token of that mixture
    assert proxy_scale_tokens(study.question) == pytest.approx(3.5 * 80_000)


def test_one_tokenizer_converts_nothing(tmp_path: Path) -> None:
    study = other_tokenizer(tmp_path, config="[scale]\ntokens = 80000\n")
    mixture = Mixture.of({"web": 0.5, "code": 0.25, "books": 0.25})
    assert study.question.conversion is None
    assert study.question.proxy_mixture(mixture) is mixture
    told = [note for note in study.plan().notes if "bytes per token" in note]
    assert told == [
        "bytes per token of the target tokenizer are not given for any domain: shares, token"
        " supply and scale are taken to be of the corpus' tokenizer"
    ]


def test_half_known_bytes_convert_nothing_and_are_named(tmp_path: Path) -> None:
    half = DOMAINS.replace("bytes_per_token = 2\n", "")
    study = other_tokenizer(tmp_path, config=half)
    assert study.question.conversion is None
    assert any("not given for code" in note for note in study.plan().notes)


# ---------------------------------------------------------------- repetition of the target

MATCH = TINY.replace("[design]", "[design]\nmatch_repetition = true")


def test_matched_proxies_repeat_as_often_as_the_target(tmp_path: Path) -> None:
    scale = "[scale]\ntokens = 163840\nparams = 3000\n" + "".join(
        f'[[domains]]\nname = "{name}"\nmax_epochs = 8\n' for name in BYTES
    )
    study = make_study(tmp_path / "study", config=MATCH + scale)
    assert study.corpus is not None
    limits = token_limits(study.question, study.corpus)
    counted = {domain.name: domain.train_tokens for domain in study.corpus.domains}
    # The proxies' 40,960 tokens are a quarter of the scale's: a quarter of the text.
    assert limits == {name: round(counted[name] / 4) for name in BYTES}
    spec = next(run.spec for run in study.plan().runs)
    assert dict(spec.token_limits) == limits
    for domain in study.question.domains:
        share = spec.mixture[domain.name]
        ours = share * 40_960 / limits[domain.name]
        assert ours == pytest.approx(domain.epochs(share, 163_840), rel=1e-4)


def test_runs_without_the_option_keep_their_ids(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study")
    assert all(not run.spec.token_limits for run in study.plan().runs)


def test_next_to_no_text_is_refused(tmp_path: Path) -> None:
    scale = "[scale]\ntokens = 40_960_000\n" + "".join(
        f'[[domains]]\nname = "{name}"\nmax_epochs = 2000\n' for name in BYTES
    )
    study = make_study(tmp_path / "study", config=MATCH + scale)
    with pytest.raises(DesignError, match="to repeat"):
        study.plan()


def test_a_domain_made_of_others_has_the_tokens_that_the_study_gives_it(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", config=TINY)
    study.split_domain("web", ["news", "blogs"], shares=[0.75, 0.25])
    study = Study.open(study.path)
    assert study.corpus is not None
    whole = study.corpus.domain("web").train_tokens
    found = {d.name: d.available_tokens for d in proxy_domains(study.question, study.corpus)}
    assert found["news"] == pytest.approx(0.75 * whole)
    assert found["books"] == study.corpus.domain("books").train_tokens
