"""`mixlaw.toml`: the one file of a study that a person edits.

Field names, defaults and comments live here once: the template of `mixlaw init`, the JSON Schema
for editors and the errors all come from these dataclasses.
"""

import difflib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from mixlaw.domains import Domain, Scale
from mixlaw.errors import ConfigError, DomainError

FILE_NAME = "mixlaw.toml"
_STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class StudySection:
    """The study itself."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    name: str = "study"
    """Shown in the report."""
    store: str = "sqlite:///study.db"
    """Where the state of runs is kept; a relative path is relative to this file."""
    corpus: str = "corpus"
    """Folder of the token files; a relative path is relative to this file."""
    slots: Annotated[int, Field(ge=1, examples=[2])] | None = None
    """Runs that train at once on this machine; not given: one per CPU core."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveSection:
    """What is minimised."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    weights: Mapping[str, float] = field(default_factory=dict[str, float])
    """Weight of each target's loss, or of a group's; targets are the validation domains. None: all
    domains alike."""
    groups: Annotated[
        Mapping[str, tuple[str, ...]], Field(examples=[{"code": ["python", "rust"]}])
    ] = field(default_factory=dict[str, tuple[str, ...]])
    """Targets by the name of their group; a group's loss is the mean of theirs."""
    worst_case: bool = False
    """Minimise the worst of the targets (those that have a weight, or all) instead of a sum."""
    relative_to_reference: bool = False
    """Count each loss by its change against the reference mixture, as a share of it."""
    risk_sd: Annotated[float, Field(ge=0)] | None = None
    """Add so many standard deviations of the objective over the bootstrap draws. Not given: none.
    """
    cvar: Annotated[float, Field(gt=0, lt=1, examples=[0.9])] | None = None
    """Minimise the mean over the worst draws, those beyond this level. Not given: the fit itself.
    """
    task: str = ""
    """Minimise the error of this downstream task instead of losses. Empty: losses."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceSection:
    """What the team would use today."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    proportions: Mapping[str, float] = field(default_factory=dict[str, float])
    """Token share of each domain. None: in proportion to the tokens on hand."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DesignSection:
    """The mixtures that the proxies are trained on."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    method: Literal["double-diminishing", "dirichlet", "sobol"] = "double-diminishing"
    """How mixtures are drawn: double-diminishing (the paper's), dirichlet or sobol."""
    mixtures: Annotated[int, Field(ge=4)] = 20
    """Mixtures that the law is fitted to; about three per domain and one."""
    floor: Annotated[float, Field(ge=0, lt=1)] = 0.04
    """Least share of every domain in every proxy. 0 is allowed; small models trained without a
    domain lie far off any law."""
    spread: bool = True
    """Keep those that lie farthest apart out of five times as many."""
    noise_runs: Annotated[int, Field(ge=0)] = 6
    """Runs that repeat two of the mixtures with fresh seeds, to see how much seeds differ."""
    holdout: Annotated[int, Field(ge=0)] = 8
    """Mixtures that are trained but not fitted, to see how well the law predicts."""
    match_repetition: bool = False
    """Give proxies only so much of each domain's text that they repeat it as often as the run that
    is to be decided would."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the design and of the training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProxiesSection:
    """The small models."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    params: Annotated[float, Field(gt=0)] = 49_000
    """Parameters, without embeddings."""
    tokens: Annotated[float, Field(gt=0)] = 1_000_000
    """Tokens that each is trained on."""
    schedule: Literal["constant", "cosine", "wsd"] = "constant"
    """Learning rate: constant (with an average of the weights), cosine or wsd."""
    evaluations: Annotated[int, Field(ge=1)] = 3
    """Log-spaced steps at which all losses are measured; the last is the end."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of matrix products; auto takes bf16 where it is faster."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes a GPU where there is one."""
    tasks: bool = False
    """Measure a task beside the losses: to choose the true text among versions with two words
    swapped, 400 times per domain. An evaluation then takes about ten times as long."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FitSection:
    """The law of the losses."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    law: str = "select"
    """Which mixing law: select (the one that predicts left-out mixtures best) or its name, such as
    m4 or reciprocal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConstraintsSection:
    """What the optimum must respect, beside the token supply."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    floor: Annotated[Mapping[str, float], Field(examples=[{"code": 0.05}])] = field(
        default_factory=dict[str, float]
    )
    """Least share of a domain. None: the design's floor, so that nothing is extrapolated."""
    cap: Annotated[Mapping[str, float], Field(examples=[{"web": 0.6}])] = field(
        default_factory=dict[str, float]
    )
    """Largest share of a domain. None: what the token supply allows."""
    fixed: Annotated[Mapping[str, float], Field(examples=[{"books": 0.2}])] = field(
        default_factory=dict[str, float]
    )
    """Share that a domain must have. None: no share is fixed."""
    groups: tuple[str, ...] = ()
    """Bounds of several domains together, such as "web+cc>=0.3" or "code+math<=0.5"."""
    kl_to_reference: Annotated[float, Field(gt=0, examples=[0.05])] | None = None
    """Largest Kullback-Leibler divergence from the reference mixture, in nats. Not given: any."""
    l1_to_reference: Annotated[float, Field(gt=0, examples=[0.2])] | None = None
    """Largest sum of changes of shares against the reference, twice the share that moves. Not
    given: any."""
    distance_to_runs: Annotated[float, Field(ge=0, examples=[0.05])] | None = None
    """Largest share that may move to get from the answer to a mixture between the runs. Not given:
    any."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ContinualSection:
    """Continual pre-training: runs that start from a model, and what it must not lose."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    original: Annotated[tuple[str, ...], Field(examples=[["web", "books"]])] = ()
    """Domains of the data that the model was trained on. Empty: there is no such question."""
    new: Annotated[tuple[str, ...], Field(examples=[["code"]])] = ()
    """Domains of the new data. Empty: all others."""
    proportions: Annotated[
        Mapping[str, float], Field(examples=[{"web": 0.8, "books": 0.2, "code": 1}])
    ] = field(default_factory=dict[str, float])
    """Proportions within the original and within the new data; each part is scaled to its share.
    None: all alike."""
    weights: Annotated[Mapping[str, float], Field(examples=[{"web": 1, "books": 1}])] = field(
        default_factory=dict[str, float]
    )
    """Weight of each target in the old loss, which must be kept. None: the original domains alike.
    """
    new_weights: Annotated[Mapping[str, float], Field(examples=[{"code": 1}])] = field(
        default_factory=dict[str, float]
    )
    """Weight of each target in the new loss, for the trade-off. None: the new domains alike."""
    tolerance: Annotated[float, Field(ge=0)] = 0.0
    """What the old loss may lose, in its unit."""
    shares: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(min_length=3)] = (
        0.05,
        0.1,
        0.2,
        0.3,
        0.45,
        0.65,
    )
    """Shares of original data that runs are trained with, around where it may be critical."""
    seeds: Annotated[int, Field(ge=1)] = 2
    """Fresh seeds of each share; from 2 on, noise and law can be told apart."""
    tokens: Annotated[float, Field(gt=0, examples=[500_000])] | None = None
    """Tokens that each run goes on for. Not given: half of the proxies'."""
    evaluations: Annotated[int, Field(ge=1)] = 6
    """Log-spaced steps at which all losses are measured, after the one at the start; five or more
    make a law by tokens."""
    checkpoint: str = ""
    """A safetensors file with the model's weights. Empty: a proxy is trained on the original data
    first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RepetitionSection:
    """What text is worth that is seen again."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    law: Literal["none", "muennighoff", "fitted"] = "none"
    """none: as much as at first, within max_epochs; muennighoff: less, with that paper's constant;
    fitted: less, with a constant from runs that repeat text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleSection:
    """A mixture per stage of the run, and the proxies whose mixture changes on the way."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    stages: Annotated[int, Field(ge=2)] = 2
    """Stages of the run that is to be decided."""
    fractions: Annotated[
        tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(examples=[[0.8, 0.2]])
    ] = ()
    """Share of the tokens that each stage takes. Empty: all alike."""
    runs: Annotated[int, Field(ge=4)] = 16
    """Proxies with such stages that are trained; each stage has a mixture of the design."""
    holdout: Annotated[int, Field(ge=0)] = 0
    """Schedules that are trained but not fitted, to see how well the law predicts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifySection:
    """The runs that put the answer to the test."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    seeds: Annotated[int, Field(ge=3)] = 3
    """Fresh seeds of the optimum and of every baseline; at least 3."""
    evaluations: Annotated[int, Field(ge=2)] = 24
    """Log-spaced steps at which losses are measured, to see who reaches what when."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """A study's whole configuration."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    study: StudySection = field(default_factory=StudySection)
    scale: Scale | None = None
    """The run that is to be decided. Not given: the proxies' own scale, nothing is extrapolated."""
    domains: tuple[Domain, ...] = ()
    """The sources of training text, one table each; `mixlaw domains add` and `mixlaw import` name
    them."""
    objective: ObjectiveSection = field(default_factory=ObjectiveSection)
    reference: ReferenceSection = field(default_factory=ReferenceSection)
    design: DesignSection = field(default_factory=DesignSection)
    proxies: ProxiesSection = field(default_factory=ProxiesSection)
    fit: FitSection = field(default_factory=FitSection)
    constraints: ConstraintsSection = field(default_factory=ConstraintsSection)
    repetition: RepetitionSection = field(default_factory=RepetitionSection)
    verify: VerifySection = field(default_factory=VerifySection)
    continual: ContinualSection = field(default_factory=ContinualSection)
    schedule: ScheduleSection = field(default_factory=ScheduleSection)


_ADAPTER = TypeAdapter(Config)
_EXAMPLES = {
    "name": "web",
    "available_tokens": 5e9,
    "documents": 4_000_000,
    "max_epochs": 2,
    "bytes_per_token": 4.3,
    "tokens": 2e9,
    "params": 1e9,
}
"""What the template shows for domains and the scale, whose classes know nothing of pydantic."""


def load_config(path: Path) -> Config:
    """Returns the configuration in a `mixlaw.toml`.

    Raises:
        ConfigError: The file is missing, is not TOML, or has an unknown key or a wrong value.
        DomainError: A domain makes no sense.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            f"there is no {path.name} in {path.parent}",
            do="make one with `mixlaw init`, or name a study folder with `--study`",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} must be a text file in UTF-8, but can't be read: {error}",
            do="put the file right, or make another study with `mixlaw init`",
        ) from error
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"{path} must be TOML, but: {error}", do="correct that place of the file"
        ) from error
    return parse_config(values, where=str(path))


def parse_config(values: Mapping[str, Any], *, where: str) -> Config:
    """Returns the configuration in plain values; `where` names their place in errors.

    Raises:
        ConfigError: An unknown key or a wrong value, with its path.
        DomainError: A domain makes no sense.
    """
    try:
        return _ADAPTER.validate_python(values)
    except ValidationError as error:
        raise _explain(error, where) from error
    except DomainError as error:
        raise DomainError(
            error.problem, where=error.where or where, do=error.do or "correct it there"
        ) from None


def config_schema() -> dict[str, Any]:
    """Returns the JSON Schema of `mixlaw.toml`, for editors."""
    return _ADAPTER.json_schema()


def write_template(config: Config) -> str:
    """Returns a `mixlaw.toml` with every key, its comment and its value.

    Keys that have no value are commented out.
    """
    schema = config_schema()
    values = cast("dict[str, Any]", _ADAPTER.dump_python(config, mode="json"))
    lines = ["# A mixlaw study. Delete a key to get its default.", ""]
    for name, entry in schema["properties"].items():
        kind = _resolve(schema, entry)
        lines += _comment(entry.get("description") or kind.get("description", ""))
        if kind.get("type") == "array":
            for item in values[name]:
                lines += [f"[[{name}]]", *_keys(_resolve(schema, kind["items"]), item), ""]
            if not values[name]:
                lines += [f"# [[{name}]]", *_keys(_resolve(schema, kind["items"]), {}), ""]
        else:
            absent = values[name] is None
            body = list(_keys(kind, {} if absent else values[name]))
            header = f"[{name}]"
            lines += [f"# {header}" if absent else header, *body, ""]
    return "\n".join(lines).rstrip() + "\n"


def with_domain(text: str, name: str) -> str:
    """Returns the text of a `mixlaw.toml` with one more domain, everything else as it was."""
    import tomlkit
    from tomlkit.items import AoT, Array

    document = tomlkit.parse(text)
    if "domains" not in document:
        document["domains"] = tomlkit.aot()
    domains = document["domains"]
    # A person may have written them as tables or inline; one can't hold the other.
    entry = tomlkit.inline_table() if isinstance(domains, Array) else tomlkit.table()
    entry["name"] = name
    assert isinstance(domains, Array | AoT)
    domains.append(entry)  # pyright: ignore[reportUnknownMemberType]
    return tomlkit.dumps(document)


def _keys(schema: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[str]:
    for key, entry in schema["properties"].items():
        yield from _comment(entry.get("description", ""))
        value = values.get(key)
        if value is None or value == {}:
            yield f"# {key} = {_example(key, entry)}"
        else:
            yield f"{key} = {_toml(value)}"


def _comment(text: str) -> list[str]:
    return [f"# {line.strip()}" for line in text.splitlines() if line.strip()]


def _example(key: str, entry: Mapping[str, Any]) -> str:
    for option in (entry, *entry.get("anyOf", ())):
        if "examples" in option:
            return _toml(option["examples"][0])
    if key in _EXAMPLES:
        return _toml(_EXAMPLES[key])
    kinds = {entry.get("type"), *(part.get("type") for part in entry.get("anyOf", ()))}
    if "object" in kinds:
        return "{ web = 0.7, code = 0.3 }"
    return '""' if "string" in kinds else "1"


def _toml(value: object) -> str:
    if isinstance(value, Mapping):
        pairs = cast("Mapping[str, object]", value).items()
        return "{ " + ", ".join(f"{_toml_key(k)} = {_toml(v)}" for k, v in pairs) + " }"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return json.dumps(value, ensure_ascii=False)


def _toml_key(key: str) -> str:
    bare = key.isascii() and key.replace("_", "").replace("-", "").isalnum()
    return key if bare else json.dumps(key, ensure_ascii=False)


def _resolve(schema: Mapping[str, Any], entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns what an entry of a JSON Schema refers to, or itself."""
    options = [entry, *entry.get("anyOf", ())]
    for option in options:
        if "$ref" in option:
            return schema["$defs"][option["$ref"].rsplit("/", 1)[1]]
    return entry


def _explain(error: ValidationError, where: str) -> ConfigError:
    first = error.errors()[0]
    location = first["loc"]
    key = _dotted(location)
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        known = _known_keys(location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"the keys there are {', '.join(known)}"
        return ConfigError(f"`{key}` is no key", where=where, do=hint)
    if first["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return ConfigError(f"`{key}` must be given", where=where, do="add it")
    reason = first["msg"].removeprefix("Input should be ")
    found = json.dumps(first["input"], default=str, ensure_ascii=False)
    return ConfigError(f"`{key}` must be {reason}, found {found[:80]}", where=where)


def _dotted(location: Sequence[int | str]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _known_keys(location: Sequence[int | str]) -> list[str]:
    schema = config_schema()
    entry: Mapping[str, Any] = schema
    for part in location:
        entry = entry["items"] if isinstance(part, int) else entry["properties"][part]
        entry = _resolve(schema, entry)
    return list(entry["properties"])
