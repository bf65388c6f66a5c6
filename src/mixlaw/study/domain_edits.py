"""Merging, splitting and adding a study's domains: `mixlaw.toml`, what is recorded, what fell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from mixlaw.config import FILE_NAME as CONFIG_FILE
from mixlaw.config import load_config, parse_config
from mixlaw.domains import Domain
from mixlaw.errors import DomainError, MixlawError, StudyError
from mixlaw.files import write_atomic
from mixlaw.observations import loss_target_names
from mixlaw.study.domain_changes import DomainChange, check_names, keep_changes, read_changes
from mixlaw.study.imported import read_imported

if TYPE_CHECKING:
    from mixlaw.study.folder import Study

CONCLUSIONS = {
    "fits/choice.json": "the choice of a law",
    "fits/fit.json": "the fit",
    "optimum.json": "the optimum",
    "verification.json": "the verification",
    "report.html": "the report",
    "next.json": "the advised next runs",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ChangedDomains:
    """What a change of the domains did."""

    change: DomainChange
    domains: tuple[Domain, ...]
    """The study's domains now."""
    fell: tuple[str, ...]
    """Conclusions that no longer hold, and why."""
    notes: tuple[str, ...]
    """What was altered in `mixlaw.toml`, and what to look at."""


def merge_domains(study: "Study", names: Sequence[str], into: str) -> ChangedDomains:
    """Makes one domain of several, in the study and in all runs that it reads.

    Raises:
        DomainError: Unknown names, fewer than two, or a name that another domain has.
        StudyError: A constraint bounds one of them alone.
    """
    domains = study.question.domains
    known = [domain.name for domain in domains]
    check_names(names, known)
    if len(names) < 2:
        raise DomainError("a merge needs two domains or more", do="name them all, then `--into`")
    _check_free(into, [name for name in known if name not in names])
    parts = [domain for domain in domains if domain.name in names]
    merged, notes = _merged(parts, into)
    change = DomainChange(kind="merge", before=tuple(names), after=(into,), shares={})
    return _record(study, change, _replaced(domains, names, [merged]), notes)


def split_domain(
    study: "Study", name: str, into: Sequence[str], *, shares: Sequence[float] | None = None
) -> ChangedDomains:
    """Makes several domains of one; earlier runs had the given shares of it, or equal ones.

    Args:
        study: The study.
        name: The domain.
        into: Names of its parts.
        shares: Each part's share of the domain in earlier runs: in proportion to its tokens, where
            the runs drew from all of it alike.

    Raises:
        DomainError: Unknown or taken names, or shares that don't sum to one.
    """
    domains = study.question.domains
    known = [domain.name for domain in domains]
    check_names([name], known)
    if len(into) < 2 or len(set(into)) < len(into):
        raise DomainError("a split needs two different names or more", do="such as `--into A1,A2`")
    for part in into:
        _check_free(part, known)
    given = [1 / len(into)] * len(into) if shares is None else list(shares)
    if len(given) != len(into) or min(given) <= 0 or abs(sum(given) - 1) > 1e-6:
        raise DomainError(
            f"a split needs one positive share per part, with the sum 1, found {given}",
            do="give each part's share of the domain's tokens, such as `--shares 0.7,0.3`",
        )
    whole = next(domain for domain in domains if domain.name == name)
    parts = [
        Domain(
            name=part,
            available_tokens=None if whole.available_tokens is None
            else whole.available_tokens * share,
            max_epochs=whole.max_epochs,
            bytes_per_token=whole.bytes_per_token,
        )
        for part, share in zip(into, given, strict=True)
    ]  # fmt: skip
    notes = (
        ()
        if shares is not None
        else (f"no shares were given: earlier runs are taken to have had {_equal(into)} of it",)
    )
    change = DomainChange(
        kind="split",
        before=(name,),
        after=tuple(into),
        shares=dict(zip(into, given, strict=True)),
    )
    return _record(study, change, _replaced(domains, [name], parts), notes)


def record_added(study: "Study", name: str, *, corpus_before: str | None) -> DomainChange | None:
    """Records that a domain was added to a study with runs; None: it has none."""
    changes = read_changes(study.path)
    is_trained = study.has_store() and any(row.status == "done" for row in study.store.rows())
    if not (is_trained or read_imported(study.path)):
        return None
    change = DomainChange(
        kind="add",
        before=(),
        after=(name,),
        shares={},
        corpora=() if corpus_before is None else (corpus_before,),
    )
    keep_changes(study.path, (*changes, change))
    return change


def add_domain_entry(
    study: "Study", name: str, *, available_tokens: float | None = None, max_epochs: float = 1.0
) -> ChangedDomains:
    """Adds a domain without text: its share in earlier runs is 0.

    Raises:
        DomainError: There is one of that name.
    """
    domains = study.question.domains
    _check_free(name, [domain.name for domain in domains])
    added = Domain(name=name, available_tokens=available_tokens, max_epochs=max_epochs)
    change = DomainChange(kind="add", before=(), after=(name,), shares={})
    return _record(study, change, [*domains, added], ())


def undo_change(study: "Study") -> DomainChange:
    """Takes the last change back, with `mixlaw.toml` as it was before.

    Raises:
        StudyError: There is none, or `mixlaw.toml` was edited since.
    """
    changes = read_changes(study.path)
    if not changes:
        raise StudyError("no change of the domains is recorded", where=str(study.path))
    last = changes[-1]
    file = study.path / CONFIG_FILE
    # A change that was cut off between its two files has left mixlaw.toml as it was.
    known = (last.config_before, last.config_after)
    if last.config_after and file.read_text(encoding="utf-8") not in known:
        raise StudyError(
            "the last change can't be taken back: mixlaw.toml was edited since",
            where=str(file),
            do="edit the domains there by hand, and delete the last entry of domain_changes.json",
        )
    if last.config_before:
        write_atomic(file, last.config_before)
    keep_changes(study.path, changes[:-1])
    study.config = load_config(file)
    return last


def _check_free(name: str, taken: Sequence[str]) -> None:
    if name in taken:
        raise DomainError(f"there is a domain {name!r} already", do="choose another name")


def _equal(into: Sequence[str]) -> str:
    return f"1/{len(into)} each" if len(into) != 2 else "half each"


def _merged(parts: Sequence[Domain], into: str) -> tuple[Domain, tuple[str, ...]]:
    """Returns one domain with the supply of several, and what that means where they differ."""
    tokens = [part.available_tokens for part in parts]
    known = [count for count in tokens if count is not None]
    epochs = [part.max_epochs for part in parts]
    notes: list[str] = []
    if len(known) < len(parts):
        total, allowed = None, min(epochs)
        if len(set(epochs)) > 1:
            notes.append(f"max_epochs differed: {into!r} has the least of them, {allowed:g}")
    else:
        total = sum(known)
        allowed = sum(count * epoch for count, epoch in zip(known, epochs, strict=True)) / total
        if len(set(epochs)) > 1:
            notes.append(
                f"max_epochs differed: {into!r} has their mean by tokens, {allowed:.4g}, which"
                " allows as many tokens as before, and no longer bounds each part"
            )
    sizes = [part.bytes_per_token for part in parts]
    size = None
    if total is not None and all(value is not None for value in sizes):
        size = sum(c * s for c, s in zip(known, cast("list[float]", sizes), strict=True)) / total
    documents = [part.documents for part in parts]
    count = sum(d for d in documents if d is not None) if None not in documents else None
    domain = Domain(
        name=into, available_tokens=total, documents=count, max_epochs=allowed, bytes_per_token=size
    )
    return domain, tuple(notes)


def _replaced(
    domains: Sequence[Domain], gone: Sequence[str], new: Sequence[Domain]
) -> list[Domain]:
    """Returns the domains with new ones in the place of the first that is gone."""
    found: list[Domain] = []
    for domain in domains:
        if domain.name == next(d.name for d in domains if d.name in gone):
            found.extend(new)
        elif domain.name not in gone:
            found.append(domain)
    return found


def _record(
    study: "Study", change: DomainChange, domains: Sequence[Domain], notes: Sequence[str]
) -> ChangedDomains:
    """Edits `mixlaw.toml`, keeps the change, and returns what it did."""
    file = study.path / CONFIG_FILE
    before = file.read_text(encoding="utf-8")
    after, edited = edit_config(before, change, domains, weights=_weights_by_default(study))
    parse_config_text(after, where=str(file))
    fell = _fallen(study, change)
    corpus = study.corpus
    kept = replace(
        change,
        config_before=before,
        config_after=after,
        corpora=() if corpus is None else (corpus.hash,),
    )
    keep_changes(study.path, (*read_changes(study.path), kept))
    write_atomic(file, after)
    study.config = load_config(file)
    return ChangedDomains(change=kept, domains=tuple(domains), fell=fell, notes=(*notes, *edited))


def _weights_by_default(study: "Study") -> dict[str, float]:
    """Returns the weights that no weights stand for: those of the training domains' own targets.

    With other domains they would be others, and the objective another one.
    """
    section = study.config.objective
    if section.weights or section.task:
        return {}
    try:
        _, observations = study.tables()
    except MixlawError:
        return {}
    shares = study.question.objective(loss_target_names(observations)).shares
    return dict.fromkeys(shares, 1.0) if len(set(shares.values())) == 1 else dict(shares)


def parse_config_text(text: str, *, where: str) -> None:
    """Raises where the edited file would be none."""
    import tomllib

    parse_config(tomllib.loads(text), where=where)


def _fallen(study: "Study", change: DomainChange) -> tuple[str, ...]:
    why = {
        "merge": f"was made with {' and '.join(map(repr, change.before))} apart",
        "split": f"was made with {change.before[0]!r} as one" if change.before else "",
        "add": f"was made without {change.after[0]!r}",
    }[change.kind]
    return tuple(
        f"{what} {why}" for name, what in CONCLUSIONS.items() if (study.path / name).exists()
    )


def edit_config(
    text: str,
    change: DomainChange,
    domains: Sequence[Domain],
    *,
    weights: Mapping[str, float] | None = None,
) -> tuple[str, tuple[str, ...]]:
    """Returns the text of a `mixlaw.toml` after a change, comments kept, and what was altered.

    Args:
        text: The file before.
        change: What changes.
        domains: All domains after it.
        weights: Weights of targets to write, so that the objective stays what it is.

    Raises:
        StudyError: A group bound holds some of the merged domains and not all.
    """
    import tomlkit

    document = cast("dict[str, Any]", tomlkit.parse(text))
    notes: list[str] = []
    _edit_domains(document, change, domains)
    if weights:
        objective = document.setdefault("objective", tomlkit.table())
        table = tomlkit.inline_table()
        table.update(weights)
        objective["weights"] = table
        notes.append(
            f"[objective] weights: {', '.join(weights)} alike, as they counted before by default"
        )
    for section, key in (
        ("reference", "proportions"), ("constraints", "floor"), ("constraints", "cap"),
        ("constraints", "fixed"),
    ):  # fmt: skip
        values = cast("dict[str, Any]", document.get(section, {}).get(key) or {})
        named = [name for name in change.before if name in values]
        if not named:
            continue
        total = sum(float(values.pop(name)) for name in named)
        total = min(total, 1.0) if key == "cap" else total
        for name in change.after:
            values[name] = total * (change.shares.get(name, 1.0) if change.shares else 1.0)
        told = ", ".join(f"{name} {float(values[name]):g}" for name in change.after)
        notes.append(f"[{section}] {key}: {', '.join(named)} became {told}")
        if key in ("cap", "fixed") and len(named) < len(change.before):
            for name in change.after:
                values.pop(name)
            notes[-1] = f"[{section}] {key}: dropped that of {', '.join(named)}, the rest had none"
    _edit_groups(document, change, notes)
    return tomlkit.dumps(document), tuple(notes)  # pyright: ignore


def _edit_domains(
    document: dict[str, Any], change: DomainChange, domains: Sequence[Domain]
) -> None:
    """Replaces the entries of domains that are gone; entries of the others stay as they are."""
    import tomlkit
    from tomlkit.items import AoT

    listed = document.get("domains")
    own = {} if listed is None else {str(entry["name"]): entry for entry in listed}
    given = all("bytes_per_token" in own.get(name, {}) for name in change.before)
    is_inline = listed is not None and not isinstance(listed, AoT)
    entries: list[Any] = []
    for domain in domains:
        if domain.name in own and domain.name not in change.after:
            entries.append(own[domain.name])
            continue
        entry = tomlkit.inline_table() if is_inline else tomlkit.table()
        entry["name"] = domain.name
        if domain.available_tokens is not None:
            entry["available_tokens"] = _short(domain.available_tokens)
        if domain.max_epochs != 1.0:
            entry["max_epochs"] = _short(domain.max_epochs)
        # What the corpus counts is of its own tokenizer: only what was given is written.
        if domain.bytes_per_token is not None and change.before and given:
            entry["bytes_per_token"] = domain.bytes_per_token
        entries.append(entry)
    array: Any = tomlkit.array() if is_inline else tomlkit.aot()
    for entry in entries:
        array.append(entry)
    if is_inline:
        array.multiline(True)
    document["domains"] = array


def _edit_groups(document: dict[str, Any], change: DomainChange, notes: list[str]) -> None:
    bounds = document.get("constraints", {}).get("groups") or []
    for i, bound in enumerate(list(bounds)):
        text = str(bound)
        sign = "<=" if "<=" in text else ">="
        names, _, limit = text.partition(sign)
        parts = [name.strip() for name in names.split("+")]
        named = [name for name in parts if name in change.before]
        if not named:
            continue
        if len(named) < len(change.before):
            raise StudyError(
                f"the bound {text!r} holds {', '.join(named)} and not the others that are merged",
                where="[constraints] groups in mixlaw.toml",
                do="change or remove it first",
            )
        rest = [name for name in parts if name not in change.before]
        bounds[i] = f"{'+'.join([*rest, *change.after])}{sign}{limit}"
        notes.append(f"[constraints] groups: {text} became {bounds[i]}")


def _short(number: float) -> float | int:
    return int(number) if float(number).is_integer() and abs(number) < 1e15 else number
