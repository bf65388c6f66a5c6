import math

import pytest

from mixlaw.domains import Domain, Scale, check_domains, token_caps
from mixlaw.errors import DomainError


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
