"""The optimum as tables and sentences: what to train on, what that gains, and how sure it is."""

from collections.abc import Iterator

from mixlaw.cli.show import print_lines, print_table
from mixlaw.optimize import Gain, MeanPlusSpread, Optimum, TailLoss
from mixlaw.optimize.pareto import ParetoFront

UNITS = {
    "nats_per_token": "nats",
    "bits_per_byte": "bits per byte",
    "error": "of error",
    "relative": "of the reference's loss",
}
VERDICTS = {
    "gain": "a gain",
    "no evidence": "no evidence of a gain",
    "loss": "worse than the baseline",
}
MOST_PRICES = 6
"""Prices that are printed; `--json` has all."""


def show_optimum(best: Optimum) -> None:
    """Prints the mixture beside the baselines, what it gains, and what that hangs on."""
    _show_shares(best)
    print_lines("")
    _show_targets(best)
    print_lines(
        "",
        f"objective: {best.objective.describe()}",
        f"predicted{_what_is_judged(best)}: {best.loss:.4f}"
        f" ({best.loss_low:.4f} to {best.loss_high:.4f})",
        *(_gain_sentence(gain) for gain in best.gains),
        *_saving_sentences(best),
        *_price_sentences(best),
        *_near_sentences(best),
        *_rival_sentences(best),
        *_left_out_sentences(best),
        *_distance_sentences(best),
        best.certificate,
        *best.notes,
    )


def show_front(front: ParetoFront) -> None:
    """Prints the mixtures of a trade-off with both objectives."""
    names = front.points[0].mixture.names
    print_table(
        ("point", *names, "first", "interval", "second", "interval"),
        (
            (
                str(i + 1),
                *(f"{share:.3f}" for share in point.mixture.values()),
                f"{point.first[0]:.4f}",
                "{:.4f} to {:.4f}".format(*point.first[1:]),
                f"{point.second[0]:.4f}",
                "{:.4f} to {:.4f}".format(*point.second[1:]),
            )
            for i, point in enumerate(front.points)
        ),
        title=f"first: {front.first}; second: {front.second}",
    )
    print_lines(
        "",
        "each point is the certified minimum of a weighted sum of the two, under the law"
        if front.is_certified
        else "not certified: the objectives are not convex, better mixtures may lie elsewhere",
    )


def _show_shares(best: Optimum) -> None:
    near = best.near_optimal
    has_epochs = any(count is not None for count in best.epochs.values())
    print_table(
        (
            "domain",
            "optimum",
            f"{best.level:.0%} range",
            *(["as good"] if near else []),
            *(["epochs"] if has_epochs else []),
        ),
        (
            (
                name,
                f"{share:.3f}{_mark(name, best)}",
                "{:.3f} to {:.3f}".format(*best.proportion_range[name]),
                *([f"{near.shares[name].low:.3f} to {near.shares[name].high:.3f}"] if near else []),
                *([_epochs(best.epochs.get(name))] if has_epochs else []),
            )
            for name, share in best.mixture.items()
        ),
    )
    if best.gains:
        print_table(
            ("domain", *(gain.baseline for gain in best.gains)),
            (
                (name, *(f"{gain.mixture[name]:.3f}" for gain in best.gains))
                for name in best.mixture
            ),
            title="\nthe baselines",
        )


def _show_targets(best: Optimum) -> None:
    first = best.gains[0].baseline if best.gains else None
    gains = best.target_gains.get(first, {}) if first else {}
    print_table(
        ("target", "weight", "predicted", "+-", *([f"below {first}", "+-"] if gains else [])),
        (
            (
                target,
                f"{best.weights.get(target, 0.0):.3g}",
                f"{value:.4f}",
                f"{(high - low) / 2:.4f}",
                *([f"{gains[target][0]:+.4f}", f"{_half(gains[target]):.4f}"] if gains else []),
            )
            for target, (value, low, high) in best.target_losses.items()
        ),
        title=f"losses, {best.level:.0%} of new runs within +-"
        + (f"; how far below {first}, and that difference's own +-" if gains else ""),
    )


def _half(limits: tuple[float, float, float]) -> float:
    return (limits[2] - limits[1]) / 2


def _what_is_judged(best: Optimum) -> str:
    """Returns which loss is predicted, where the objective is more than what one run has."""
    if isinstance(best.objective, TailLoss | MeanPlusSpread):
        return f", for one run, {best.objective.loss.describe()}"
    return ""


def _gain_sentence(gain: Gain) -> str:
    return (
        f"against {gain.baseline}: {VERDICTS[gain.verdict]}, {gain.value:+.4f}"
        f" ({gain.low:+.4f} to {gain.high:+.4f})"
    )


def _saving_sentences(best: Optimum) -> Iterator[str]:
    for baseline, savings in best.savings.items():
        yield f"against {baseline}: {savings.sentence()}"


def _price_sentences(best: Optimum) -> Iterator[str]:
    for price in best.prices[:MOST_PRICES]:
        yield price.sentence(_unit(best))
    if len(best.prices) > MOST_PRICES:
        yield f"{len(best.prices) - MOST_PRICES} more constraints bind at a lower price"


def _near_sentences(best: Optimum) -> Iterator[str]:
    near = best.near_optimal
    if near is not None:
        proven = "" if near.is_proven else "; not certified, they may reach further"
        yield (
            f"as good: shares of mixtures predicted within {near.tolerance:.2g} of the optimum,"
            " one standard deviation of the error of a predicted difference between two runs"
            f"{proven}"
        )


def _rival_sentences(best: Optimum) -> Iterator[str]:
    for rival in best.rivals:
        yield (
            f"{rival.law}, which predicts as well, would choose {rival.mixture}:"
            f" {rival.share_moved:.1%} of the tokens move; if it is right, the optimum above is"
            f" {rival.regret:.2g} worse than the best, and if {best.law} is, its own is"
            f" {rival.excess:.2g} worse"
        )


def _left_out_sentences(best: Optimum) -> Iterator[str]:
    if best.left_out:
        most = best.left_out[0]
        runs = most.run_ids[0] if len(most.run_ids) == 1 else f"{len(most.run_ids)} runs"
        yield (
            f"without {runs} ({most.left_out}) {most.share_moved:.1%} of the tokens would move, at"
            f" a predicted cost of {most.regret:.2g}; no other mixture moves the optimum further"
        )


def _distance_sentences(best: Optimum) -> Iterator[str]:
    between = (
        "it lies between the runs (in their convex hull)"
        if best.distance_to_hull < 1e-6
        else f"{best.distance_to_hull:.1%} to get between the runs, into their convex hull"
    )
    yield (
        f"{best.distance_to_runs:.0%} of the tokens would have to move to get from the optimum to"
        f" the closest mixture that was run; {between}"
    )


def _unit(best: Optimum) -> str:
    return UNITS.get(best.objective_unit, best.objective_unit)


def _epochs(count: float | None) -> str:
    return "?" if count is None else f"{count:.3g}"


def _mark(name: str, best: Optimum) -> str:
    return " (floor)" if name in best.at_floor else " (cap)" if name in best.at_cap else ""
