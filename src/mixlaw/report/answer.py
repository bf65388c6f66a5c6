"""What the answer hangs on: prices, shares that may move, other laws, single runs, distances."""

from mixlaw.mixtures import Mixture
from mixlaw.optimize.prices import ShadowPrice
from mixlaw.report.data import ReportData
from mixlaw.report.numbers import (
    count_words,
    format_count,
    format_number,
    format_percent,
    format_share,
    join_words,
)
from mixlaw.report.palette import clean_name
from mixlaw.report.sentences import objective_words, unit_words
from mixlaw.report.tables import Cell, Table, header_cells

MOST_ROWS = 8
"""Rows of each table here; a report of many domains must stay readable."""
LEAST_COST = 0.001
"""Losses below this are not told apart."""
CLEAR_SHIFT = 0.005
"""Shares that move by less are not named."""


def near_sentence(data: ReportData) -> str:
    """Returns how far shares can move before the law could tell."""
    near = data.optimum.near_optimal
    if near is None:
        return ""
    widest = sorted(near.shares, key=lambda name: near.shares[name].low - near.shares[name].high)
    words = [
        f"{clean_name(name)} from {format_share(near.shares[name].low)} to"
        f" {format_share(near.shares[name].high)}"
        for name in widest[:3]
        if near.shares[name].high - near.shares[name].low > CLEAR_SHIFT
    ]
    noise = format_number(near.tolerance)
    text = (
        f"Mixtures predicted within {noise} {objective_words(data)} of the optimum are practically"
        " as good: that is one standard deviation of the error of a predicted difference between"
        " two runs."
    )
    if words:
        text += f" Among them a share can move far, if the others follow: {join_words(words)}."
    if near.is_proven:
        return f"{text} Under the law no allowed mixture of that kind goes further."
    return f"{text} That none goes further is not certified."


def price_sentence(data: ReportData) -> str:
    """Returns what the dearest constraint costs, in the units of those who can loosen it."""
    prices = data.optimum.prices
    if not prices:
        return "No constraint binds at a price: loosening one would gain nothing under the law."
    first = prices[0]
    text = f"{_loosening(first)} would gain {_gain(first)} {objective_words(data)}"
    binding = count_words(len(prices), "constraint binds", "constraints bind")
    return (
        f"{text[0].upper()}{text[1:]}, the optimum chosen anew. {binding} at a price. A price is"
        " about the law: it says nothing of text that differs from what is on"
        " hand."
    )


def price_table(data: ReportData) -> Table | None:
    """Returns what each binding constraint costs; None: none does."""
    prices = data.optimum.prices
    if not prices:
        return None
    has_epochs = any(price.epoch_price is not None for price in prices)
    return Table(
        caption=f"What binding constraints cost, in {objective_words(data).removeprefix('of ')}"
        + _shown(len(prices), "constraints"),
        columns=header_cells(
            "Constraint", "Loosened by", "gains", *(["per further epoch"] if has_epochs else [])
        ),
        rows=tuple(
            (
                Cell(text=clean_name(price.constraint)),
                Cell(text=clean_name(_loosening(price))),
                Cell(text=_gain(price)),
                *([Cell(text=_epoch_words(price))] if has_epochs else []),
            )
            for price in prices[:MOST_ROWS]
        ),
    )


def rival_sentence(data: ReportData) -> str:
    """Returns whether the laws that predict as well would choose something else."""
    rivals = data.optimum.rivals
    if not rivals:
        return (
            "No other law predicts as well, within one standard error, so there is no second"
            " opinion."
            if data.choice is not None
            else ""
        )
    furthest = max(rivals, key=lambda rival: rival.share_moved)
    worst = max(rivals, key=lambda rival: rival.regret)
    count = count_words(len(rivals), "other law predicts", "other laws predict")
    return (
        f"{count} as well, within one standard error. The optimum that lies furthest off, of"
        f" {clean_name(furthest.law)}, differs by {format_percent(furthest.share_moved)} of the"
        f" tokens. If {clean_name(worst.law)} is right, this report's optimum is"
        f" {_cost(worst.regret)} {objective_words(data)} worse than the best."
    )


def rival_table(data: ReportData) -> Table | None:
    """Returns the optima of the other laws; None: there are none."""
    best = data.optimum
    if not best.rivals:
        return None
    return Table(
        caption="The optima of the other laws within one standard error",
        columns=header_cells(
            "Law", "Tokens that move", "Where to", "Our optimum under it", "Its optimum under ours"
        ),
        rows=tuple(
            (
                Cell(text=clean_name(rival.law)),
                Cell(text=format_percent(rival.share_moved)),
                Cell(text=shift_words(best.mixture, rival.mixture)),
                Cell(text=f"{_cost(rival.regret)} worse"),
                Cell(text=f"{_cost(rival.excess)} worse"),
            )
            for rival in best.rivals[:MOST_ROWS]
        ),
    )


def left_out_sentence(data: ReportData) -> str:
    """Returns on which run the optimum hangs most."""
    found = data.optimum.left_out
    if not found:
        return ""
    most, dearest = found[0], max(found, key=lambda one: one.regret)
    text = (
        f"Without {_runs(most.run_ids)} ({_shares(most.left_out)}) the optimum would move by"
        f" {format_percent(most.share_moved)} of the tokens; no other mixture moves it further."
    )
    return (
        f"{text} The costliest one to lose, {_runs(dearest.run_ids)}, would make the choice"
        f" {_cost(dearest.regret)} {objective_words(data)} worse, as the law of all runs sees"
        " it."
    )


def left_out_table(data: ReportData) -> Table | None:
    """Returns the optimum without each mixture, those that move it most."""
    best = data.optimum
    if not best.left_out:
        return None
    return Table(
        caption="The optimum without one of the mixtures" + _shown(len(best.left_out), "mixtures"),
        columns=header_cells("Left out", "Its shares", "Tokens that move", "Where to", "Costs"),
        rows=tuple(
            (
                Cell(text=_runs(one.run_ids)),
                Cell(text=_shares(one.left_out)),
                Cell(text=format_percent(one.share_moved)),
                Cell(text=shift_words(best.mixture, one.mixture)),
                Cell(text=_cost(one.regret)),
            )
            for one in best.left_out[:5]
        ),
    )


def distance_sentence(data: ReportData) -> str:
    """Returns how far the optimum lies from what was run."""
    best = data.optimum
    text = (
        "The optimum differs from the closest mixture that was run by"
        f" {format_share(best.distance_to_runs)} of all tokens."
    )
    if not best.distance_to_hull >= 1e-6:
        return f"{text} It lies between the runs, so that nothing is extrapolated in proportions."
    return (
        f"{text} It lies outside the runs: {format_share(best.distance_to_hull)} of all tokens"
        " would have to move to get between them. The law is extrapolated that far."
    )


def front_sentence(data: ReportData) -> str:
    """Returns what the trade-off between the two heaviest targets costs."""
    front = data.front
    if front is None:
        return ""
    first, last = front.points[0], front.points[-1]
    beaten = (
        "Under the law no allowed mixture is better than a dot in both."
        if front.is_certified
        else "That no mixture is better in both is not certified."
    )
    return (
        f"From the best mixture for {clean_name(_target(front.first))} to the best for"
        f" {clean_name(_target(front.second))}: the former's loss rises by"
        f" {format_number(last.first[0] - first.first[0])}, the latter's falls by"
        f" {format_number(first.second[0] - last.second[0])} {unit_words(data)}. {beaten}"
    )


def shift_words(old: Mixture, new: Mixture, limit: int = 3) -> str:
    """Returns the largest changes of shares: `code +0.03, web -0.02`."""
    shifts = sorted(
        ((new[name] - share, name) for name, share in old.items()),
        key=lambda item: (-abs(item[0]), item[1]),
    )
    words = [
        f"{clean_name(name)} {'+' if shift > 0 else '−'}{abs(shift):.3f}"  # noqa: RUF001
        for shift, name in shifts[:limit]
        if abs(shift) >= CLEAR_SHIFT / 10
    ]
    return ", ".join(words) or "nowhere"


def _target(words: str) -> str:
    return words.removeprefix("1 ")


def _loosening(price: ShadowPrice) -> str:
    if price.kind in ("cap", "floor"):
        if price.step_tokens is not None:
            more = "more" if price.kind == "cap" else "fewer"
            return f"{format_count(price.step_tokens)} {more} tokens of {clean_name(price.subject)}"
        more = "more" if price.kind == "cap" else "less"
        return f"a share of {clean_name(price.subject)} that is {price.step:g} {more}"
    return f"{price.step:g} of room"


def _gain(price: ShadowPrice) -> str:
    return format_number(price.step_gain, price.step_gain / 10)


def _cost(loss: float) -> str:
    """Returns what a choice costs; the noise of a run is never below this."""
    return format_number(loss) if loss >= LEAST_COST else f"less than {LEAST_COST:g}"


def _epoch_words(price: ShadowPrice) -> str:
    return "" if price.epoch_price is None else format_number(price.epoch_price)


def _runs(run_ids: tuple[str, ...]) -> str:
    if len(run_ids) == 1:
        return f"run {clean_name(run_ids[0])[:8]}"
    return f"run {clean_name(run_ids[0])[:8]} and {len(run_ids) - 1} more"


def _shares(mixture: Mixture, limit: int = 3) -> str:
    ranked = sorted(mixture.items(), key=lambda item: (-item[1], item[0]))[:limit]
    words = [f"{clean_name(name)} {format_share(share)}" for name, share in ranked]
    return ", ".join(words) + (", …" if len(mixture) > limit else "")


def _shown(count: int, noun: str) -> str:
    shown = MOST_ROWS if noun == "constraints" else 5
    return f": {shown} of {count} {noun}" if count > shown else ""
