"""Every exporter through one suite: what is written is read back, whatever the names."""

import csv
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixlaw.domains import Domain, Scale
from mixlaw.errors import ExportError, MixtureError
from mixlaw.exporters import FRAMEWORKS, check_export, export_mixture
from mixlaw.exporters.csv import parse_csv
from mixlaw.exporters.export import find_framework
from mixlaw.exporters.json import parse_json
from mixlaw.exporters.megatron import parse_megatron
from mixlaw.exporters.table import ExportTable
from mixlaw.mixtures import Mixture

ODD_NAMES = ("<script>alert(1)</script>", "$(id)", "../x", 'quo"te', "émoji 🎲", "=cmd()", " a,b ")
ODD_CHARACTERS = "ab0 =+-@,;:'\"\\/\t\r\n\0\x1f\x85\u2028\u202e\ufeffé🎲<&$({"
ODD_MIXTURE = Mixture.normalized({name: index + 1.0 for index, name in enumerate(ODD_NAMES)})
ODD_PREFIXES = {name: f"/data/{index}_text_document" for index, name in enumerate(ODD_NAMES)}


@st.composite
def weights(draw):  # not mixtures: the type checks of the tests use randomness of their own
    text = st.text(st.sampled_from(ODD_CHARACTERS), min_size=1, max_size=8)
    names = draw(st.lists(text, min_size=2, max_size=6, unique=True))
    share = st.just(0.0) | st.floats(1e-12, 1.0)
    shares = draw(st.lists(share, min_size=len(names), max_size=len(names)))
    return dict(zip(names, [shares[0] + 1e-3, *shares[1:]], strict=True))


@pytest.mark.parametrize("framework", FRAMEWORKS)
@given(weights=weights())
def test_what_is_written_is_read_back(framework, weights):
    mixture = Mixture.normalized(weights)
    prefixes = {name: f"/d/{index}" for index, name in enumerate(mixture)}
    chosen = find_framework(framework)
    text, _ = chosen.format(ExportTable.of(mixture, prefixes=prefixes))
    read = chosen.parse(text, "the text")
    for name, share in mixture.items():
        written = prefixes[name] if framework == "megatron" else name
        assert math.isclose(read.get(written, 0.0), share, abs_tol=1e-9)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_files_keep_odd_names_apart(framework, tmp_path):
    path = tmp_path / "out"
    result = export_mixture(ODD_MIXTURE, framework=framework, path=path, prefixes=ODD_PREFIXES)
    assert result.path == path
    assert check_export(path, framework, prefixes=ODD_PREFIXES) == ODD_MIXTURE
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_json_has_tokens_and_epochs_at_the_scale(tmp_path):
    domains = [Domain(name="web", available_tokens=3e9), Domain(name="code")]
    path = tmp_path / "mixture.json"
    export_mixture(
        Mixture.of({"code": 0.25, "web": 0.75}),
        framework="json",
        path=path,
        domains=domains,
        scale=Scale(tokens=8e9, params=1e8),
    )
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["format"] == "mixlaw-mixture/1"
    assert content["unit"] == "share of tokens"
    assert content["scale"] == {"params": 1e8, "tokens": 8e9}
    assert content["domains"] == [
        {"name": "web", "proportion": 0.75, "tokens": 6_000_000_000, "epochs": 2.0},
        {"name": "code", "proportion": 0.25, "tokens": 2_000_000_000, "epochs": None},
    ]


def test_csv_has_one_row_per_domain_and_empty_cells_for_what_is_not_known(tmp_path):
    path = tmp_path / "mixture.csv"
    export_mixture(Mixture.of({"web": 0.1, "co,de": 0.9}), framework="csv", path=path)
    with path.open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [
            ["domain", "proportion", "tokens", "epochs"],
            ["web", "0.1", "", ""],
            ["co,de", "0.9", "", ""],
        ]


def test_names_that_look_like_formulas_are_written_as_they_are_and_said(tmp_path):
    mixture = Mixture.of({"web": 0.5, "=cmd()": 0.5})
    result = export_mixture(mixture, framework="csv", path=tmp_path / "mixture.csv")
    assert check_export(result.path, "csv") == mixture
    assert result.notes == (
        ("'=cmd()' begins like a formula, and is written as it is: import the column as text when"
        " you open the file in a spreadsheet"),
    )  # fmt: skip


def test_megatron_gets_weights_and_prefixes_in_pairs(tmp_path):
    path = tmp_path / "blend.txt"
    result = export_mixture(
        Mixture.of({"web": 0.6, "books": 0.0, "code": 0.4}),
        framework="megatron",
        path=path,
        prefixes={"code": "/d/code_text_document"},
    )
    assert path.read_text() == "0.6 web_text_document\n0.4 /d/code_text_document\n"
    assert result.notes == ("left out, since Megatron takes no zero weights: books",)


def test_megatron_weights_keep_all_digits(tmp_path):
    third = 1 / 3
    path = tmp_path / "blend.txt"
    mixture = Mixture.normalized({"a": third, "b": third, "c": third})
    export_mixture(mixture, framework="megatron", path=path)
    assert path.read_text().split()[0] == "0.3333333333333333"


@pytest.mark.parametrize(
    ("name", "prefix", "message"),
    [
        (
            "my web",
            None,
            ("the name 'my web' is unsafe as part of a path, so Megatron needs a prefix for it\n"
            "  do: give one with `--prefix NAME=PATH`"),
        ),
        (
            "../x",
            None,
            ("the name '../x' is unsafe as part of a path, so Megatron needs a prefix for it\n"
            "  do: give one with `--prefix NAME=PATH`"),
        ),
        ("web", "", "the Megatron prefix of 'web' must not be empty, found ''"),
        (
            "web",
            "/data/my web",
            ("the Megatron prefix of 'web' must have no white space or control characters, found"
            " '/data/my web'"),
        ),
        ("web", "/d/a\u00a0b", "must have no white space or control characters"),
        ("web", "0.5", "the Megatron prefix of 'web' must not be a number, found '0.5'"),
        ("web", "nan", "the Megatron prefix of 'web' must not be a number, found 'nan'"),
        ("web", "-web", "the Megatron prefix of 'web' must not begin with a dash, found '-web'"),
        (
            "web",
            "/d/$(id)",
            ("the Megatron prefix of 'web' must have no characters that mean something to a shell,"
            " found '/d/$(id)'\n  do: give the path of its token files without .bin or .idx; link"
            " them to such a path"),
        ),
        (
            "web",
            "code_text_document",
            ("domains must have prefixes of their own, but 'web' and 'code' both have"
            " 'code_text_document'"),
        ),
    ],
)  # fmt: skip
def test_prefixes_that_megatron_or_a_shell_would_misread_are_errors(
    name, prefix, message, tmp_path
):
    path = tmp_path / "blend.txt"
    prefixes = {} if prefix is None else {name: prefix}
    with pytest.raises(ExportError) as caught:
        export_mixture(
            Mixture.of({name: 0.5, "code": 0.5}),
            framework="megatron",
            path=path,
            prefixes=prefixes,
        )
    assert message in str(caught.value)
    assert not path.exists()


def test_a_domain_without_a_share_needs_no_prefix(tmp_path):
    mixture = Mixture.of({"a b": 0.0, "web": 1.0})
    export_mixture(mixture, framework="megatron", path=tmp_path / "blend.txt")
    assert check_export(tmp_path / "blend.txt", "megatron") == Mixture.of(
        {"web_text_document": 1.0}
    )


@pytest.mark.parametrize(
    ("framework", "message"),
    [
        (
            "megatorn",
            ("'megatorn' is no framework that mixlaw exports to\n  do: did you mean 'megatron'? there"
            " are json, csv, megatron"),
        ),
        (
            "zzz",
            "'zzz' is no framework that mixlaw exports to\n  do: there are json, csv, megatron",
        ),
    ],
)  # fmt: skip
def test_an_unknown_framework_names_the_nearest(framework, message, tmp_path):
    with pytest.raises(ExportError) as caught:
        export_mixture(ODD_MIXTURE, framework=framework, path=tmp_path / "x")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (parse_megatron, "", "a blend must be pairs of weight and prefix, found 0 words, in F"),
        (parse_megatron, "0.5 a 0.5", "a blend must be pairs of weight and prefix, found 3 words, in F"),
        (
            parse_megatron,
            "a 0.5 b 0.5",
            ("a blend's weights must be positive numbers, found 'a': Megatron would stop, or drop all"
            " weights, in F"),
        ),
        (
            parse_megatron,
            "0 a 1 b",
            ("a blend's weights must be positive numbers, found '0': Megatron would stop, or drop all"
            " weights, in F"),
        ),
        (parse_megatron, "0.5 7 0.5 b", "a blend's prefixes must be paths, each there once, found '7', in F"),
        (parse_megatron, "0.5 b 0.5 b", "a blend's prefixes must be paths, each there once, found 'b', in F"),
        (parse_json, "[]", "a mixture's JSON must have the format 'mixlaw-mixture/1', found None, in F"),
        (
            parse_json,
            '{"format": "mixlaw-mixture/2"}',
            "a mixture's JSON must have the format 'mixlaw-mixture/1', found 'mixlaw-mixture/2', in F",
        ),
        (
            parse_json,
            '{"format": "mixlaw-mixture/1", "domains": [{"name": "a", "proportion": 0.5}]}',
            "proportions must sum to 1, but they sum to 0.5, in F",
        ),
        (
            parse_json,
            '{"format": "mixlaw-mixture/1", "domains": [{"name": "a"}]}',
            ("every domain in a mixture's JSON must have a name and a proportion, but one lacks them"
            " (KeyError('proportion')), in F"),
        ),
        (parse_csv, "", "a mixture's CSV must have the column 'domain', found , in F"),
        (parse_csv, "domain,share\na,1\n", "a mixture's CSV must have the column 'proportion', found domain, share, in F"),
        (
            parse_csv,
            "domain,proportion\na,x\n",
            ("every row of a mixture's CSV must have a domain and a proportion (could not convert"
            " string to float: 'x'), in F"),
        ),
        (parse_csv, "domain,proportion\na,0.5\na,0.5\n", "a mixture names each domain once, in F"),
    ],
)  # fmt: skip
def test_files_that_are_no_export_are_said(parse, text, message):
    with pytest.raises(ExportError) as caught:
        parse(text, "F")
    assert str(caught.value) == message


def test_paths_that_can_not_be_written_are_said(tmp_path):
    with pytest.raises(ExportError, match=r"an export must be a file, but .* is a folder"):
        export_mixture(ODD_MIXTURE, framework="json", path=tmp_path)
    with pytest.raises(ExportError, match=r"the folder of an export must exist, but .* does not"):
        export_mixture(ODD_MIXTURE, framework="json", path=tmp_path / "no" / "mixture.json")
    with pytest.raises(ExportError, match="can't be read"):
        check_export(tmp_path / "absent.json", "json")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ExportError, match="can't be read"):
        check_export(tmp_path / "binary", "csv")


def test_names_and_prefixes_are_checked(tmp_path):
    path = tmp_path / "x"
    with pytest.raises(ExportError) as caught:
        export_mixture(
            Mixture.of({"web": 1.0}), framework="json", path=path, prefixes={"wbe": "/d/web"}
        )
    assert str(caught.value) == (
        "a prefix was given for 'wbe', which is no domain here\n  do: the domains are web"
    )
    with pytest.raises(ExportError, match="a domain's name must be Unicode text to be written"):
        export_mixture(Mixture.of({"\udcff": 1.0}), framework="json", path=path)
    with pytest.raises(MixtureError, match="the mixture must give a share for 'code'"):
        export_mixture(
            Mixture.of({"web": 1.0}),
            framework="json",
            path=path,
            domains=[Domain(name="web"), Domain(name="code")],
        )
    assert not path.exists()


def test_an_export_replaces_the_file_that_was_there(tmp_path):
    path = tmp_path / "mixture.json"
    path.write_text("old")
    export_mixture(ODD_MIXTURE, framework="json", path=path)
    assert check_export(path, "json") == ODD_MIXTURE
