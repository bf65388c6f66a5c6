"""`mixlaw.toml`: what is read, what is refused, and the template."""

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixlaw.config import Config, config_schema, load_config, parse_config, write_template
from mixlaw.domains import Domain
from mixlaw.errors import ConfigError, DomainError

EVIL = ("<script>alert(1)</script>", "$(id)", "../x", 'a "quote"', "🦜 emoji", "a\\b", "x=y,z")


def parse(text: str) -> Config:
    return parse_config(tomllib.loads(text), where="mixlaw.toml")


def test_the_template_holds_every_key_and_reads_back_as_the_same_configuration() -> None:
    text = write_template(Config())
    assert parse(text) == Config()
    for section in config_schema()["properties"]:
        assert f"[{section}]" in text


def test_every_example_in_the_template_is_valid_once_its_comment_sign_is_taken_off() -> None:
    text = re.sub(r"^# (?=\[|\w+ = )", "", write_template(Config()), flags=re.MULTILINE)
    config = parse(text)
    assert config.domains == (
        Domain(
            name="web",
            available_tokens=5e9,
            documents=4_000_000,
            max_epochs=2,
            bytes_per_token=4.3,
        ),
    )
    assert config.scale is not None
    assert config.constraints.kl_to_reference == 0.05
    assert sum(config.constraints.floor.values()) < 1
    assert all(value is not None for value in dataclasses.asdict(config.constraints).values())


def test_a_template_with_values_reads_back_as_they_are() -> None:
    config = parse(
        "[scale]\ntokens = 1e12\n[objective]\nweights = { web = 0.5 }\n"
        "[[domains]]\nname = 'web'\navailable_tokens = 5e12\n[[domains]]\nname = 'code'\n"
    )
    assert parse(write_template(config)) == config


@given(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=3, unique=True))
def test_any_name_of_a_domain_survives_the_template(names: list[str]) -> None:
    try:
        domains = tuple(Domain(name=name) for name in names)
    except DomainError:
        return  # control characters and blanks are no names
    config = parse_config({"domains": domains}, where="x")
    assert parse(write_template(config)) == config


@pytest.mark.parametrize("name", EVIL)
def test_odd_names_survive_in_weights_and_domains(name: str) -> None:
    config = parse_config(
        {"domains": [{"name": name}], "objective": {"weights": {name: 1.0}}}, where="x"
    )
    assert parse(write_template(config)) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[desgn]", "`desgn` is no key, in mixlaw.toml\n  do: did you mean `design`?"),
        (
            "[design]\nmixtres = 3",
            "`design.mixtres` is no key, in mixlaw.toml\n  do: did you mean `mixtures`?",
        ),
        (
            "[[domains]]\nname = 'web'\navailable_tokenz = 3",
            "`domains[0].available_tokenz` is no key, in mixlaw.toml\n"
            "  do: did you mean `available_tokens`?",
        ),
        (
            "[study]\nzzz = 3",
            "`study.zzz` is no key, in mixlaw.toml\n  do: the keys there are name, store, corpus,"
            " slots",
        ),
        (
            "[[domains]]\nmax_epochs = 3",
            "`domains[0].name` must be given, in mixlaw.toml\n  do: add it",
        ),
        ("[scale]\nparams = 3", "`scale.tokens` must be given, in mixlaw.toml\n  do: add it"),
        (
            "[design]\nmethod = 'grid'",
            "`design.method` must be 'double-diminishing', 'dirichlet' or 'sobol', found \"grid\","
            " in mixlaw.toml",
        ),
        (
            "[design]\nmixtures = 3",
            "`design.mixtures` must be greater than or equal to 4, found 3, in mixlaw.toml",
        ),
        (
            "[design]\nfloor = 1.5",
            "`design.floor` must be less than 1, found 1.5, in mixlaw.toml",
        ),
        (
            "[verify]\nseeds = 2",
            "`verify.seeds` must be greater than or equal to 3, found 2, in mixlaw.toml",
        ),
    ],
)
def test_a_wrong_key_or_value_is_named_with_its_path(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert str(caught.value) == message


def test_a_wrong_domain_is_named() -> None:
    with pytest.raises(DomainError) as caught:
        parse("[[domains]]\nname = 'web'\navailable_tokens = -3")
    assert str(caught.value) == (
        "available_tokens must be a positive number, found -3.0, in domain 'web'\n"
        "  do: correct `available_tokens`, or leave it out where it is not known"
    )


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "mixlaw.toml")
    assert str(caught.value) == (
        f"there is no mixlaw.toml in {tmp_path}\n"
        "  do: make one with `mixlaw init`, or name a study folder with `--study`"
    )


def test_a_file_that_is_no_toml_names_the_place(tmp_path: Path) -> None:
    file = tmp_path / "mixlaw.toml"
    file.write_text("[study\nname = 1")
    with pytest.raises(ConfigError, match=r"must be TOML, but: Expected .*\(at line 1, column 7\)"):
        load_config(file)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mixlaw.toml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="can't be read"):
        load_config(file)
