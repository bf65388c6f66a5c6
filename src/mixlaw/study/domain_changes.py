"""Domains that were merged, split or added after runs had been trained: old runs stay usable.

Changes are kept in `domain_changes.json` and applied to the tables whenever they are read, the
oldest first; imports and run folders are left as they are. A merged domain has the sum of the
shares; an added one has the share 0 in earlier runs; the parts of a split one have fixed shares of
it there, and are one domain for every law until runs tell them apart.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from pydantic import TypeAdapter

from mixlaw.errors import DomainError, StudyError
from mixlaw.files import write_atomic
from mixlaw.laws.base import MixingLaw
from mixlaw.laws.stack import StackedLaw
from mixlaw.laws.tied import TiedLaw
from mixlaw.mixtures import Mixture
from mixlaw.observations import (
    PROPORTION_PREFIX,
    decode_stages,
    encode_stages,
    proportion_domains,
)
from mixlaw.runs.spec import RunSpec
from mixlaw.study.training import is_alike

FILE_NAME = "domain_changes.json"
TOLD_APART = 0.02
"""Standard deviation over runs of a part's share of its domain from which on it is told apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DomainChange:
    """One change of a study's domains."""

    kind: Literal["merge", "split", "add"]
    before: tuple[str, ...]
    """Domains that are gone: those merged, or the one that was split."""
    after: tuple[str, ...]
    """Domains that are there instead."""
    shares: Mapping[str, float]
    """Of a split: each part's share of the domain in earlier runs."""
    corpora: tuple[str, ...] = ()
    """Hashes of the texts that earlier runs were trained on."""
    config_before: str = ""
    """`mixlaw.toml` before it, so that the change can be undone."""
    config_after: str = ""

    def sentence(self) -> str:
        """Returns the change in words."""
        if self.kind == "merge":
            return f"{_words(self.before)} merged into {self.after[0]!r}: their shares add up"
        if self.kind == "add":
            return f"{self.after[0]!r} added: share 0 in earlier runs"
        parts = ", ".join(f"{name!r} {share:.3g}" for name, share in self.shares.items())
        return f"{self.before[0]!r} split into {parts} of its share in earlier runs"

    def apply(self, shares: Mapping[str, float]) -> dict[str, float]:
        """Returns a run's shares after the change."""
        kept = {name: share for name, share in shares.items() if name not in self.before}
        gone = sum(shares.get(name, 0.0) for name in self.before)
        for name in self.after:
            part = self.shares.get(name, 1.0) if self.kind == "split" else 1.0
            kept[name] = kept.get(name, 0.0) + (gone * part if self.kind != "add" else 0.0)
        return kept


def _words(names: Sequence[str]) -> str:
    return " and ".join(repr(name) for name in names)


def read_changes(folder: Path) -> tuple[DomainChange, ...]:
    """Returns a study's changes, the oldest first.

    Raises:
        StudyError: The file is damaged.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return ()
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))["changes"]
        return TypeAdapter(tuple[DomainChange, ...]).validate_python(kept)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StudyError(
            f"the changes of domains can't be read ({error})",
            where=str(path),
            do="restore the file from a backup: without it, earlier runs have other domains",
        ) from error


def keep_changes(folder: Path, changes: Sequence[DomainChange]) -> Path:
    """Writes a study's changes, and returns the file."""
    values = {"changes": [asdict(change) for change in changes]}
    return write_atomic(folder / FILE_NAME, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def apply_changes(runs: pl.DataFrame, changes: Sequence[DomainChange]) -> pl.DataFrame:
    """Returns runs with the domains as they are now; stages change with them."""
    if not changes or not runs.height:
        return runs
    old = proportion_domains(runs)
    shares = [
        {name: row[PROPORTION_PREFIX + name] or 0.0 for name in old}
        for row in runs.iter_rows(named=True)
    ]
    changed = [change_shares(row, changes) for row in shares]
    names = list(dict.fromkeys(name for row in changed for name in row))
    stages = runs["stages"].to_list() if "stages" in runs.columns else [None] * runs.height
    ids = runs["mixture_id"].to_list() if "mixture_id" in runs.columns else [None] * runs.height
    columns = {PROPORTION_PREFIX + name: [row.get(name, 0.0) for row in changed] for name in names}
    altered = runs.drop([PROPORTION_PREFIX + name for name in old]).with_columns(
        mixture_id=pl.Series(
            [
                _mixture_id(row, names, kept if text is not None else None)
                for row, text, kept in zip(changed, stages, ids, strict=True)
            ],
            dtype=pl.String,
        ),
        **{name: pl.Series(values, dtype=pl.Float64) for name, values in columns.items()},
    )
    if "stages" not in runs.columns:
        return altered
    texts = [None if text is None else _change_stages(text, changes) for text in stages]
    return altered.with_columns(stages=pl.Series(texts, dtype=pl.String))


def change_shares(shares: Mapping[str, float], changes: Sequence[DomainChange]) -> dict[str, float]:
    """Returns a run's shares after all changes."""
    found = dict(shares)
    for change in changes:
        found = change.apply(found)
    return found


def _mixture_id(row: Mapping[str, float], names: Sequence[str], kept: str | None) -> str:
    """Returns the id of a changed mixture; a schedule keeps its own."""
    if kept is not None:
        return kept
    return Mixture.normalized({name: row.get(name, 0.0) for name in names}).mixture_id


def _change_stages(text: str, changes: Sequence[DomainChange]) -> str:
    return encode_stages(
        [
            (until, Mixture.normalized(change_shares(mixture, changes)))
            for until, mixture in decode_stages(text)
        ]
    )


def is_usable(spec: RunSpec, base: RunSpec, changes: Sequence[DomainChange]) -> bool:
    """Whether a run is alike today's, once its domains are: it may be from before a change.

    Its text is then another one as a whole, but that of its domains is the same.
    """
    if is_alike(spec, base):
        return True
    earlier = {corpus for change in changes for corpus in change.corpora}
    if not changes or spec.later_stages or spec.corpus not in {base.corpus, *earlier}:
        return False
    mixture = Mixture.normalized(change_shares(spec.mixture, changes))
    limits = {name: count for name, count in base.token_limits.items() if name in mixture}
    return is_alike(replace(spec, mixture=mixture, corpus=base.corpus, token_limits=limits), base)


# ------------------------------------------------------------------ what runs can't tell apart


def unidentified(
    runs: pl.DataFrame, changes: Sequence[DomainChange]
) -> tuple[tuple[str, ...], ...]:
    """Returns the splits whose parts no run tells apart: they always have the same shares of it."""
    names = proportion_domains(runs)
    found: list[tuple[str, ...]] = []
    for change in changes:
        parts = tuple(name for name in change.after if name in names)
        if change.kind != "split" or len(parts) < 2:
            continue
        share_RK = runs.select(PROPORTION_PREFIX + name for name in parts).to_numpy()
        whole_R = share_RK.sum(axis=1)
        within_RK = share_RK[whole_R > 0] / whole_R[whole_R > 0, None]
        if len(within_RK) < 2 or _least_spread(within_RK) < TOLD_APART:
            found.append(parts)
    return tuple(found)


def _least_spread(within_RK: np.ndarray) -> float:
    """Returns the standard deviation of shares within a domain, in the direction of the least."""
    centered_RK = within_RK - within_RK.mean(axis=0)
    values_K = np.linalg.svd(centered_RK, compute_uv=False)
    axes = within_RK.shape[1] - 1
    return float(values_K[axes - 1] / np.sqrt(len(within_RK))) if len(values_K) >= axes else 0.0


def unseen(runs: pl.DataFrame, changes: Sequence[DomainChange]) -> tuple[str, ...]:
    """Returns the added domains that no run has trained on."""
    added = [name for change in changes if change.kind == "add" for name in change.after]
    names = proportion_domains(runs)
    return tuple(
        name for name in added if name in names and not (runs[PROPORTION_PREFIX + name] > 0).any()
    )


def tied_runs(runs: pl.DataFrame, ties: Sequence[Sequence[str]]) -> pl.DataFrame:
    """Returns runs in which the parts that can't be told apart are one domain."""
    for parts in ties:
        columns = [PROPORTION_PREFIX + name for name in parts]
        whole = PROPORTION_PREFIX + "+".join(parts)
        runs = runs.with_columns(pl.sum_horizontal(columns).alias(whole)).drop(columns)
    return runs


def tie_law(law: MixingLaw, domains: Sequence[str], ties: Sequence[Sequence[str]]) -> MixingLaw:
    """Returns the law over all domains that does not tell tied ones apart."""
    if not ties:
        return law
    if isinstance(law, StackedLaw):
        return StackedLaw(
            laws=tuple(tie_law(member, domains, ties) for member in law.laws),
            weights=law.weights,
        )
    first = {name: parts[0] for parts in ties for name in parts}
    heads = [first.get(name, name) for name in domains]
    number = {head: n for n, head in enumerate(dict.fromkeys(heads))}
    return TiedLaw(law, tuple(number[head] for head in heads))


def change_notes(
    ties: Sequence[Sequence[str]], new: Sequence[str], changes: Sequence[DomainChange]
) -> tuple[str, ...]:
    """Returns what a fit can't say because of changed domains, in sentences."""
    shares = {name: share for change in changes for name, share in change.shares.items()}
    notes: list[str] = []
    for parts in ties:
        split = ", ".join(f"{name} {shares.get(name, 0.0):.3g}" for name in parts)
        notes.append(
            f"{_words(parts)} can't be told apart: in all runs they have the same shares of what"
            f" was split ({split}), so that the law takes them for one; how the optimum divides"
            " their share is arbitrary, until runs differ in it"
        )
    notes += [
        f"no run has trained on {name!r}: the law knows nothing of it but its shrinkage"
        for name in new
    ]
    return tuple(notes)


def check_names(names: Sequence[str], known: Sequence[str]) -> None:
    """Raises where a name is unknown or there twice.

    Raises:
        DomainError: It is.
    """
    for name in names:
        if name not in known:
            raise DomainError(
                f"{name!r} is no domain of the study", do=f"the domains are {', '.join(known)}"
            )
    if len(set(names)) < len(names):
        raise DomainError("a domain was named twice", do="name each once")
