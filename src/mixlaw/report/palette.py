"""Names and colours: the same ones for a mixture or a domain in every sentence, table and figure.

Colours that change with dark mode are CSS variables in the page; figures are drawn with the light
ones, which are then replaced by their variables.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from mixlaw.report.data import ReportData
from mixlaw.verify import OPTIMUM

INK = "#1b1f24"
MUTED = "#5c6670"
GRID = "#dfe3e8"
SURFACE = "#fefefe"
SHARE_COLOURS = ("#b4bfca", "#5a8fbd", "#0d3f6b")
"""Runs with a low, a middle and a high share of a domain: told apart by lightness."""
MIXTURE_COLOURS = ("#0b5fa5", "#b9501a", "#6b7178", "#84489a", "#3b7a57")
"""The optimum, then the baselines; shapes and dashes tell them apart as well."""
THEME = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    SURFACE: "--surface",
    **{colour: f"--share-{i}" for i, colour in enumerate(SHARE_COLOURS)},
    **{colour: f"--mixture-{i}" for i, colour in enumerate(MIXTURE_COLOURS)},
}
"""CSS variable of each colour that depends on light or dark."""

DOMAIN_COLOURS = (
    "#44aa99", "#cc6677", "#88ccee", "#999933", "#aa4499", "#ddcc77", "#117733", "#882255",
)  # fmt: skip
"""Paul Tol's muted scheme without its indigo: safe for colour-blind readers
(SRON technical note EPS/TN/09-002, figure 3)."""
OTHER_COLOUR = "#a9b0b8"
"""Of all domains beyond these."""

_MARKERS = (("D", "◆"), ("o", "●"), ("s", "■"), ("^", "▲"), ("v", "▼"))
_DASHES = ("-", "--", "-.", ":", (0, (5, 1)))
_LABELS = {
    OPTIMUM: "the optimum",
    "reference": "your mixture",
    "proportional": "the proportional mixture",
    "uniform": "the uniform mixture",
    "unimax": "the UniMax mixture",
    "temperature": "the temperature mixture",
}
_UNSAFE = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufffe\uffff")
"""What turns the direction of the text around it, and what XML forbids."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MixtureStyle:
    """How a mixture looks."""

    colour: str
    """As figures draw it."""
    marker: str
    """Matplotlib's."""
    glyph: str
    """The same marker as text."""
    dashes: str | tuple[int, tuple[int, ...]]
    """Of its lines."""

    @property
    def css(self) -> str:
        """Its colour in the page."""
        return f"var({THEME[self.colour]})"


def clean_name(name: str) -> str:
    """Returns a name without what XML forbids or what would turn the text around."""
    return "".join(
        "\ufffd" if unicodedata.category(c) in ("Cc", "Cs") or c in _UNSAFE else c for c in name
    )


def shorten_name(name: str, length: int = 16) -> str:
    """Returns a name of at most `length` characters, for figures; the page has it in full."""
    name = clean_name(name)
    return name if len(name) <= length else name[: length - 1].rstrip() + "…"


def mixture_label(name: str) -> str:
    """Returns how a sentence calls a mixture."""
    return _LABELS.get(name, f"the mixture “{clean_name(name)}”")


def mixture_names(data: ReportData) -> tuple[str, ...]:
    """Returns the optimum and all baselines, those that were only trained last."""
    names = [OPTIMUM, *(gain.baseline for gain in data.optimum.gains)]
    if data.verification is not None:
        names += [mixture.name for mixture in data.verification.mixtures]
    return tuple(dict.fromkeys(names))


def mixture_styles(data: ReportData) -> dict[str, MixtureStyle]:
    """Returns the look of every mixture by name."""
    styles: dict[str, MixtureStyle] = {}
    for i, name in enumerate(mixture_names(data)):
        k = i if i < len(MIXTURE_COLOURS) else 1 + (i - 1) % (len(MIXTURE_COLOURS) - 1)
        marker, glyph = _MARKERS[k]
        styles[name] = MixtureStyle(
            colour=MIXTURE_COLOURS[k], marker=marker, glyph=glyph, dashes=_DASHES[k]
        )
    return styles


def domain_colours(data: ReportData) -> dict[str, str]:
    """Returns a colour for each training domain; beyond eight, the smallest ones share grey."""
    domains: Sequence[str] = data.fit.domains
    if len(domains) > len(DOMAIN_COLOURS):
        domains = sorted(domains, key=lambda name: -data.optimum.mixture[name])
    colours = dict(zip(domains, DOMAIN_COLOURS, strict=False))
    return {name: colours.get(name, OTHER_COLOUR) for name in data.fit.domains}
