"""Megatron-LM's blend: `weight prefix` pairs, for `--data-args-path` or `--data-path`.

Megatron splits the file at white space, without quotes. It reads pairs when the number of words is
even, but when one of the weights is not a number it silently takes all words for prefixes and
drops the weights. So a prefix must be one word that is not a number; and since people also paste
blends into shell scripts, one that a shell leaves alone. Weights must be positive: a domain with a
share of zero is left out. Weights are shares of samples of one length, which is shares of tokens.
"""

import math
import re
from collections.abc import Mapping

from mixlaw.errors import ExportError
from mixlaw.exporters.table import ExportTable
from mixlaw.mixtures import Mixture

_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SHELL_CHARACTERS = frozenset("'\"\\`$;|&<>()*?[]{}!#~")


def format_megatron(table: ExportTable) -> tuple[str, list[str]]:
    """Returns the text of a mixture as a blend, and notes on what was left out.

    Raises:
        ExportError: A prefix is missing, or is one that Megatron or a shell would misread.
    """
    used = [row for row in table.rows if row.proportion > 0]
    prefixes = {row.name: find_prefix(row.name, table.prefixes) for row in used}
    owners: dict[str, str] = {}
    for name, prefix in prefixes.items():
        if prefix in owners:
            raise ExportError(
                f"domains must have prefixes of their own, but {owners[prefix]!r} and {name!r} both"
                f" have {prefix!r}"
            )
        owners[prefix] = name
    left_out = [row.name for row in table.rows if row.proportion == 0]
    notes = [f"left out, since Megatron takes no zero weights: {', '.join(left_out)}"]
    lines = [f"{row.proportion!r} {prefixes[row.name]}\n" for row in used]
    return "".join(lines), notes if left_out else []


def find_prefix(name: str, prefixes: Mapping[str, str]) -> str:
    """Returns the prefix that was given for a domain, or `<name>_text_document`.

    Raises:
        ExportError: Megatron or a shell would misread it, or there is none and the name is unsafe.
    """
    if name not in prefixes:
        if not _SAFE_NAME.fullmatch(name):
            raise ExportError(
                f"the name {name!r} is unsafe as part of a path, so Megatron needs a prefix for it",
                do="give one with `--prefix NAME=PATH`",
            )
        return f"{name}_text_document"
    prefix = prefixes[name]
    problem = _prefix_problem(prefix)
    if problem:
        raise ExportError(
            f"the Megatron prefix of {name!r} must {problem}, found {prefix!r}",
            do="give the path of its token files without .bin or .idx; link them to such a path",
        )
    return prefix


def parse_megatron(text: str, where: str) -> Mixture:
    """Returns the mixture of prefixes that Megatron would train on.

    Raises:
        ExportError: Megatron would stop, or would silently drop the weights.
    """
    words = text.split()
    if not words or len(words) % 2:
        raise ExportError(
            f"a blend must be pairs of weight and prefix, found {len(words)} words", where=where
        )
    shares: dict[str, float] = {}
    for weight, prefix in zip(words[::2], words[1::2], strict=True):
        value = _as_number(weight)
        if value is None or not (math.isfinite(value) and value > 0):
            raise ExportError(
                f"a blend's weights must be positive numbers, found {weight!r}: Megatron would"
                " stop, or drop all weights",
                where=where,
            )
        if _as_number(prefix) is not None or prefix in shares:
            raise ExportError(
                f"a blend's prefixes must be paths, each there once, found {prefix!r}", where=where
            )
        shares[prefix] = value
    return Mixture.normalized(shares)


def _prefix_problem(prefix: str) -> str | None:
    if not prefix:
        return "not be empty"
    if prefix.split() != [prefix] or not prefix.isprintable():
        return "have no white space or control characters"
    if _as_number(prefix) is not None:
        return "not be a number"
    if prefix.startswith("-"):
        return "not begin with a dash"
    if _SHELL_CHARACTERS.intersection(prefix):
        return "have no characters that mean something to a shell"
    return None


def _as_number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None
