"""The report: what it says follows the data, and no name in the data can harm it."""

import math
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl
import pytest

from mixlaw.fit import fit_law
from mixlaw.laws.library import MIXING_LAWS
from mixlaw.laws.stack import StackedLaw
from mixlaw.report import ReportData, render_report, write_report
from mixlaw.report.laws import fitted_laws
from mixlaw.report.numbers import format_error
from mixlaw.report.palette import THEME
from mixlaw.selection import select_law
from report_studies import DOMAINS, extrapolated, repeat_targets, simulate_report

PACKAGE = Path(__file__).parents[1] / "src" / "mixlaw" / "report"
EVIL = (
    "<script>alert(1)</script>",
    "\"quoted\" & 'x'",
    "$x^2$ $(id) ../x {{ 7*7 }}",
    "😀 emoji",
    "_日本語\u202e",
)
VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """What a browser would see: elements, attributes and text, with every element closed."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.by_tag: dict[str, list[str]] = {}
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open and data.strip():
            self.texts.append(" ".join(data.split()))
            for tag in set(self.open):
                self.by_tag.setdefault(tag, []).append(" ".join(data.split()))

    @property
    def text(self) -> str:
        return " ".join(self.texts)

    @property
    def first_sentence(self) -> str:
        return " ".join(self.by_tag["h1"])

    def values(self, name: str) -> list[str]:
        return [value for _, key, value in self.attributes if key == name]


def page_of(data: ReportData) -> Page:
    return Page(render_report(data))


def figure_of(html: str, key: str) -> str:
    """Returns the SVG element of one figure."""
    found = re.search(rf'<svg [^>]*aria-labelledby="{key}-title.*?</svg>', html, re.DOTALL)
    assert found is not None
    return found[0]


CASES = {
    "verified": simulate_report,
    "predicted": lambda: simulate_report(num_seeds=0),
    "lost": lambda: simulate_report(optimum_penalty=0.25, reference=True),
    "one seed": lambda: simulate_report(num_seeds=1),
    "extrapolated": lambda: extrapolated(simulate_report(num_seeds=0)),
    "evil": lambda: simulate_report(
        domains=EVIL, targets=(EVIL[0], "<img src=x onerror=alert(2)>"), num_mixtures=8
    ),
    "imported": lambda: simulate_report(
        domains=("a", "b", "c"),
        targets=("a", "b"),
        num_mixtures=10,
        imported=True,
        num_seeds=0,
        holdout=0,
        noise=False,
        steps=(500,),
    ),
    "two domains": lambda: simulate_report(
        domains=("a", "b"), targets=("a",), num_mixtures=6, num_seeds=0, noise=False
    ),
    "30 domains": lambda: simulate_report(
        domains=tuple(f"domain {i}" for i in range(30)),
        targets=("x",),
        num_mixtures=8,
        num_draws=3,
    ),
    "30 targets": lambda: repeat_targets(simulate_report(), 30),
    "limits unknown": lambda: without_limits(simulate_report()),
}


def without_limits(data: ReportData) -> ReportData:
    optimum = data.optimum
    return replace(
        data,
        optimum=replace(
            optimum,
            loss_low=-math.inf,
            loss_high=math.inf,
            proportion_range=dict.fromkeys(optimum.proportion_range, (math.nan, math.nan)),
            target_losses={
                t: (v, math.nan, math.nan) for t, (v, _, _) in optimum.target_losses.items()
            },
            gains=tuple(
                replace(gain, low=-math.inf, high=math.inf, verdict="no evidence")
                for gain in optimum.gains
            ),
        ),
        verification=None,
    )


@pytest.fixture(params=CASES)
def html(request: pytest.FixtureRequest) -> str:
    return rendered(request.param)


_PAGES: dict[str, str] = {}


def rendered(case: str) -> str:
    if case not in _PAGES:
        _PAGES[case] = render_report(CASES[case]())
    return _PAGES[case]


# -------------------------------------------------------------------------------- every page


def test_page_is_well_formed_and_ids_are_unique_and_found(html: str) -> None:
    page = Page(html)
    ids = page.values("id")
    assert [name for name, count in Counter(ids).items() if count > 1] == []
    wanted = [value[1:] for value in page.values("href")]
    wanted += [name for value in page.values("aria-labelledby") for name in value.split()]
    wanted += re.findall(r"url\(#([^)]+)\)", html)
    assert set(wanted) <= set(ids)


def test_page_fetches_nothing_and_runs_nothing(html: str) -> None:
    page = Page(html)
    forbidden = {"script", "link", "img", "image", "iframe", "object", "embed", "base", "form"}
    assert forbidden.isdisjoint(page.tags)
    names = {name for _, name, _ in page.attributes}
    assert {"src", "srcset", "action", "data", "background", "ping"}.isdisjoint(names)
    assert not [name for name in names if name.startswith("on")]
    assert all(value.startswith("#") for value in page.values("href"))
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
    assert "@import" not in html
    assert "default-src 'none'" in " ".join(page.values("content"))


def test_every_figure_has_a_title_and_every_table_a_header(html: str) -> None:
    page = Page(html)
    figures = page.tags["svg"]
    assert figures >= 2
    assert page.tags["desc"] == figures
    assert page.tags["title"] == figures + 1  # the page has one as well
    assert page.tags["caption"] == page.tags["table"]
    assert page.values("scope").count("col") > 0
    assert "nan" not in page.text.lower().replace("nano", "")
    assert not re.search(r"\b(inf|None)\b", page.text)


# -------------------------------------------------------------------------------- what it says


def test_first_sentence_says_what_to_do_and_what_was_measured() -> None:
    data = simulate_report()
    page = page_of(data)
    shares = sorted(data.optimum.mixture.items(), key=lambda item: -item[1])
    found = data.verification.comparisons[0]  # pyright: ignore[reportOptionalMemberAccess]
    assert page.first_sentence.startswith(f"Train on {shares[0][0]} {shares[0][1]:.2f}, ")
    assert f"ended {found.difference:.3f} nats per token below" in page.first_sentence
    assert (
        "This is a decision at the proxies' own scale (49.2k parameters, 1.02M tokens);"
        in page.text
    )
    assert "nothing is extrapolated" in page.text


def test_changed_observations_change_verdict_text_and_figures() -> None:
    before, after = rendered("verified"), render_report(simulate_report(optimum_penalty=0.25))
    won, lost = Page(before), Page(after)
    assert won.first_sentence.startswith("Train on ")
    assert lost.first_sentence.startswith("Keep the proportional mixture: ")
    assert "the law's optimum lost: it ended" in lost.first_sentence
    assert "The optimum lost when it was trained" in lost.text
    assert "The law had predicted a gain." in lost.text
    assert "The prediction was wrong for the optimum: predicted" in lost.text
    assert "lost" not in won.text
    assert "The prediction was wrong" not in won.text
    assert figure_of(before, "measured") != figure_of(after, "measured")
    assert figure_of(before, "race") != figure_of(after, "race")
    # What the test did not touch is as it was.
    assert figure_of(before, "mixture") == figure_of(after, "mixture")
    assert figure_of(before, "seen0") == figure_of(after, "seen0")


def test_a_gain_that_training_does_not_confirm_is_no_reason_to_change() -> None:
    gained = simulate_report().verification.comparisons[0].difference  # pyright: ignore[reportOptionalMemberAccess]
    page = page_of(simulate_report(optimum_penalty=gained))
    assert page.first_sentence.startswith("Keep the proportional mixture: ")
    assert "There is no evidence of a gain: trained with 3 seeds" in page.first_sentence
    assert "The predicted gain over the proportional mixture was not confirmed" in page.text


def test_another_baseline_that_beats_the_optimum_is_the_answer() -> None:
    data = simulate_report(reference=True)
    assert data.verification is not None
    first, second, third = data.verification.comparisons
    beaten = replace(second, difference=-0.1, low=-0.12, high=-0.08, winner=second.baseline)
    page = page_of(
        replace(data, verification=replace(data.verification, comparisons=(first, beaten, third)))
    )
    assert page.first_sentence.startswith("Train on the proportional mixture instead: ")


def test_a_lost_test_keeps_the_teams_own_mixture() -> None:
    page = Page(rendered("lost"))
    assert page.first_sentence.startswith("Keep your mixture: ")
    assert "keep this" in page.text


def test_one_seed_decides_nothing() -> None:
    page = Page(rendered("one seed"))
    assert "too few seeds to compare it with" in page.text
    assert "Not tested by training yet" in page.first_sentence
    assert "Fewer than two seeds" in page.text


def test_without_a_test_the_page_says_that_it_predicts() -> None:
    page = Page(rendered("predicted"))
    assert "predicted to end" in page.first_sentence
    assert "Not tested by training yet." in page.first_sentence
    assert "“mixlaw verify” trains the optimum" in page.text


def test_no_evidence_in_the_prediction_keeps_the_baseline() -> None:
    page = Page(rendered("limits unknown"))
    assert page.first_sentence.startswith("Keep the proportional mixture: ")
    assert "There is no evidence of a gain: the law's optimum is predicted" in page.first_sentence
    assert "no limits known" in page.text


def test_a_predicted_loss_is_said() -> None:
    data = simulate_report(num_seeds=0)
    gains = tuple(
        replace(gain, value=-0.02, low=-0.03, high=-0.01, verdict="loss")
        for gain in data.optimum.gains
    )
    page = page_of(replace(data, optimum=replace(data.optimum, gains=gains)))
    assert "The law's optimum is predicted to be worse than" in page.first_sentence
    assert "Verdict: a loss" in page.text


def test_without_baselines_there_is_no_gain_to_state() -> None:
    data = simulate_report(num_seeds=0)
    page = page_of(replace(data, optimum=replace(data.optimum, gains=())))
    assert page.first_sentence.startswith("Train on ")
    assert "There is no baseline to compare it with." in page.first_sentence


def test_extrapolation_is_warned_of_before_anything_else() -> None:
    page = Page(rendered("extrapolated"))
    assert "nothing is extrapolated" not in page.text
    warning = page.text.index("This is an extrapolation")
    assert warning < page.text.index("What it is about")
    assert "7B parameters, 1T tokens" in page.text
    assert "at the scale of the small runs, predicted" in page.first_sentence


def test_imported_runs_leave_unknown_what_they_do_not_tell() -> None:
    page = Page(rendered("imported"))
    assert "the scale of the imported runs (an unknown number of parameters" in page.text
    assert "there are no loss curves" in page.text
    assert "10 runs were imported" in page.text
    assert "How many tokens there are of any domain is not known" in page.text
    assert "No mixture was run with several seeds" in page.text
    assert "No mixture was held out" in page.text
    assert "bits per byte" in page.text  # that they are not known
    assert page.text.count("noise between seeds is not in the intervals") == 0  # said once


def test_limits_of_the_fit_are_said() -> None:
    page = Page(rendered("two domains"))
    assert "6 mixtures for 3 parameters, fewer than 2.5 for each" in page.text
    assert "At the least share that is allowed: b" in page.text


def test_many_domains_are_shortened_in_the_first_sentence_alone() -> None:
    page = Page(rendered("30 domains"))
    assert "smaller ones" in page.first_sentence
    assert len(page.first_sentence) < 400
    assert {f"domain {i}" for i in range(30)} <= set(page.by_tag["th"])


def test_many_targets_are_all_in_the_tables() -> None:
    page = Page(rendered("30 targets"))
    assert {f"t{i}" for i in range(30)} <= set(page.by_tag["th"])
    assert "12 of 30 targets are shown" in page.text


def test_tokens_epochs_and_marks_follow_the_domains() -> None:
    data = simulate_report()
    page = page_of(data)
    assert page.text.count("at its floor") == len(data.optimum.at_floor)
    scarce = tuple(replace(domain, available_tokens=None) for domain in data.domains)
    assert "not known" in page_of(replace(data, domains=scarce)).text


def test_licences_and_provenance_are_there() -> None:
    page = Page(rendered("verified"))
    assert page.text.count("CC BY-SA 4.0") == len(DOMAINS)
    assert "deadbeefdeadbeef" in page.text
    assert "2 March 2026, 09:30 UTC" in page.text
    assert "arXiv:2403.16952" in page.text


def test_target_called_objective_keeps_its_own_numbers() -> None:
    def errors(target: str) -> str:
        """Returns the table of errors, its target's name replaced."""
        data = simulate_report(
            domains=("a", "b"), targets=("a", target), num_mixtures=6, num_draws=3, num_seeds=0
        )
        text = page_of(data).text.replace("The objective", "all")
        table = text[text.index("Mean absolute errors of predicted losses") :]
        return table.split("Mean instead", maxsplit=1)[0].replace(target, "X")

    assert errors("objective") == errors("recipes")


def test_losses_in_bits_per_byte_stay_what_they_are() -> None:
    data = simulate_report(num_seeds=0)
    fit = replace(data.fit, table=replace(data.fit.table, unit="bits_per_byte"))
    optimum = replace(data.optimum, unit="bits_per_byte")
    page = page_of(replace(data, fit=fit, optimum=optimum))
    assert "nats" not in page.text
    assert "bits per byte below" in page.first_sentence


# -------------------------------------------------------------------------------- names are data


def test_names_are_text_and_nothing_else() -> None:
    page = Page(rendered("evil"))
    assert page.text.count("<script>alert(1)</script>") > 5
    assert "$x^2$ $(id) ../x {{ 7*7 }}" in page.text
    assert "😀 emoji" in page.text
    assert "\u202e" not in rendered("evil")
    labels = [text for text in page.by_tag["text"] if text.startswith(("<script", "$x^2$", "😀"))]
    assert len(labels) >= 3  # in the figures, as text


@pytest.mark.parametrize("name", ["a\x00b\x1b[0m", "\ufffe", "</style><b>"])
def test_names_that_no_xml_may_hold_are_replaced(name: str) -> None:
    data = simulate_report(domains=("a", "b"), targets=(name,), num_mixtures=6, num_seeds=0)
    html = render_report(data)
    Page(html)
    assert html.encode("utf-8")
    assert (
        "<b>" not in html.split("</style>", 1)[1].replace("<b>Certificate", "").split("<main>")[1]
    )


# -------------------------------------------------------------------------------- the file


def test_same_data_give_the_same_bytes_whatever_the_users_settings() -> None:
    before = rendered("verified")
    with mpl.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.grid": False}):
        assert render_report(simulate_report()) == before


def test_report_is_whole_or_not_there(tmp_path: Path) -> None:
    data = CASES["two domains"]()
    path = write_report(data, tmp_path / "report.html")
    assert path.read_text(encoding="utf-8") == rendered("two domains")
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(OSError, match="absent"):
        write_report(data, tmp_path / "absent" / "report.html")


def test_heavy_libraries_are_imported_only_to_draw() -> None:
    code = "import sys, mixlaw.report; print([m for m in ('matplotlib', 'jinja2') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_matplotlib_is_imported_in_one_module() -> None:
    users = [
        file.name
        for file in PACKAGE.glob("*.py")
        if re.search(r"^\s*(import|from) matplotlib", file.read_text(), re.M)
    ]
    assert users == ["figures.py"]


# -------------------------------------------------------------------------------- colours


def css_variables() -> list[dict[str, str]]:
    """Returns the colours of light and of dark mode."""
    blocks = re.findall(r":root \{(.*?)\}", (PACKAGE / "report.css").read_text(), re.DOTALL)
    light, dark = (dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6})", block)) for block in blocks)
    return [light, {**light, **dark}]


def contrast(first: str, second: str) -> float:
    """Returns the contrast ratio of two colours, as WCAG 2.2 defines it."""

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_figures_and_page_have_the_same_colours() -> None:
    light, dark = css_variables()
    assert {variable: colour for colour, variable in THEME.items()}.items() <= light.items()
    assert set(THEME.values()) <= set(dark)


@pytest.mark.parametrize("mode", [0, 1])
def test_text_and_marks_can_be_told_from_the_background(mode: int) -> None:
    colours = css_variables()[mode]
    surface = colours["--surface"]
    assert contrast(colours["--ink"], surface) >= 7
    assert contrast(colours["--muted"], surface) >= 4.5
    assert contrast(colours["--alert"], colours["--alert-tint"]) >= 4.5
    assert min(contrast(colours[f"--mixture-{i}"], surface) for i in range(5)) >= 4.5


# ---------------------------------------------------------------------- the law


def test_the_report_says_which_law_was_chosen_and_shows_the_others() -> None:
    data = simulate_report()
    choice = select_law(data.runs, data.observations, laws=("linear", "m4"))
    page = page_of(replace(data, choice=choice))
    assert "Which law 2 laws were fitted without some of the mixtures" in page.text
    assert "m4 erred least" in page.text
    mean = format_error(choice.score("mean"), choice.num_mixtures)
    assert f"predicting the mean errs by {mean}" in page.text
    assert {"linear", "m4", "mean"} <= set(page.by_tag["th"])
    assert "Ye et al. 2025" in page.text


def test_a_law_that_was_asked_for_is_shown_without_a_table_of_others() -> None:
    page = page_of(simulate_report())
    assert "Which law" not in page.text
    assert "The law m4 was asked for; no other was tried." in page.text
    assert "Here r_j is the share of domain j and c the loss that no mixture removes" in page.text


def test_a_stack_is_spelled_out_with_its_weights_and_sources() -> None:
    data = simulate_report()
    stack = StackedLaw((MIXING_LAWS["m4"], MIXING_LAWS["reciprocal-shared"]), (0.3, 0.7))
    fit = fit_law(stack, data.runs, data.observations, num_draws=10)
    page = page_of(replace(data, fit=fit))
    assert "0.70 times reciprocal-shared" in page.text
    assert page.text.index("0.70 times") < page.text.index("0.30 times m4")
    assert "Shukor et al. 2025" in page.text
    assert "Eq. 7: the law." in page.text


def test_every_law_of_the_library_has_its_letters_explained() -> None:
    data = simulate_report()
    for law in MIXING_LAWS.values():
        (shown,) = fitted_laws(replace(data, fit=replace(data.fit, law=law)))
        assert shown.letters != "the other letters are fitted"
        assert shown.formula == law.formula
