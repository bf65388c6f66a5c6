"""How well losses were predicted, and what each domain does to each target: the tables of both."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mixlaw.report.data import ReportData
from mixlaw.report.decision import weight_array
from mixlaw.report.numbers import format_error, format_number, format_with_error
from mixlaw.report.palette import clean_name, domain_colours
from mixlaw.report.sentences import unit_words
from mixlaw.report.tables import UNKNOWN, Cell, Table, header_cells, ranked_domains, ranked_targets
from mixlaw.selection import Score


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """One quantity, predicted for each fitted run by the fit without its mixture."""

    name: str
    observed_R: Float[np.ndarray, " R"]
    predicted_R: Float[np.ndarray, " R"]
    half_R: Float[np.ndarray, " R"]
    """Half width of a 90% interval, from the errors on the other runs."""
    mean_mae: float
    """Mean absolute error of predicting the mean of the others."""

    @property
    def mae(self) -> float:
        """Mean absolute error."""
        return float(np.mean(np.abs(self.observed_R - self.predicted_R)))


def left_out(data: ReportData) -> list[LeftOut]:
    """Returns the left-out predictions of the objective, then of each target by weight."""
    fit = data.fit
    residual_RT, mean_RT = fit.left_out_residual_RT, fit.mean_residual_RT
    index = {target: i for i, target in enumerate(fit.targets)}
    weights = [("objective", weight_array(data))]
    weights += [(target, np.eye(len(index))[index[target]]) for target in ranked_targets(data)]
    found: list[LeftOut] = []
    for name, weight_T in weights:
        used_T = weight_T > 0
        y_R = fit.table.y_RT[:, used_T] @ weight_T[used_T]
        residual_R = residual_RT[:, used_T] @ weight_T[used_T]
        mean_R = mean_RT[:, used_T] @ weight_T[used_T]
        known_R = np.isfinite(y_R)
        y_R, residual_R = y_R[known_R], residual_R[known_R]
        found.append(
            LeftOut(
                name=name,
                observed_R=y_R,
                predicted_R=y_R - residual_R,
                half_R=_half_widths(np.abs(residual_R), data.optimum.level),
                mean_mae=float(np.mean(np.abs(mean_R[known_R]))) if known_R.any() else math.nan,
            )
        )
    return [one for one in found if len(one.observed_R)]


def held_out(data: ReportData, target: str | None) -> Float[np.ndarray, "4 H"]:
    """Returns observed, predicted, low and high of the held-out runs; None: of the objective."""
    score = data.holdout
    if score is None or (target is not None and target not in score.columns):
        return np.zeros((4, 0))
    k = len(score.columns) - 1 if target is None else score.columns.index(target)
    values = np.stack(
        [score.observed_RK[:, k], score.predicted_RK[:, k], score.low_RK[:, k], score.high_RK[:, k]]
    )
    return values[:, np.isfinite(values[0])]


def _half_widths(error_R: Float[np.ndarray, " R"], level: float) -> Float[np.ndarray, " R"]:
    count = len(error_R)
    rank = min(math.ceil(level * count), max(count - 1, 1))
    others = [np.sort(np.delete(error_R, i)) for i in range(count)]
    return np.array([other[rank - 1] if len(other) else math.nan for other in others])


def score_table(data: ReportData) -> Table:
    """Returns the errors of predictions: left out and held out, with the mean's beside them."""
    # A target may be called "objective": the objective itself is told by its place, not its name.
    scores = () if data.holdout is None else data.holdout.scores
    held = {score.name: score for score in scores[:-1]}
    seed_sd = dict(
        zip(data.fit.targets, data.fit.seed_sd(np.eye(len(data.fit.targets))), strict=True)
    )
    objective_sd = data.fit.seed_sd(weight_array(data)[None])[0]
    has_seeds = data.fit.replicate_freedom > 0
    rows: list[tuple[Cell, ...]] = []
    for i, one in enumerate(left_out(data)):
        score = scores[-1] if scores and i == 0 else held.get(one.name)
        noise = float(objective_sd if i == 0 else seed_sd[one.name])
        count = len(one.observed_R)
        rows.append(
            (
                Cell(text="The objective" if i == 0 else clean_name(one.name)),
                Cell(text=format_error(one.mae, count)),
                Cell(text=format_error(one.mean_mae, count)),
                *(_held_cells(score) if scores else ()),
                *(
                    [Cell(text=format_error(noise, data.fit.replicate_freedom))]
                    if has_seeds
                    else []
                ),
            )
        )
    level = "" if data.holdout is None else f"{data.holdout.level:.0%}"
    return Table(
        caption=f"Mean absolute errors of predicted losses, in {unit_words(data)}",
        columns=header_cells(
            "Target",
            "Left out: law",
            "mean instead",
            *(
                (
                    "Held out: law",
                    "mean instead",
                    "rank correlation",
                    f"inside {level}",
                    "interval width",
                )
                if scores
                else ()
            ),
            *(["between seeds"] if has_seeds else []),
        ),
        rows=tuple(rows),
        strong_rows=1,
    )


def _held_cells(score: Score | None) -> tuple[Cell, ...]:
    if score is None or score.count == 0:
        return (Cell(text="no loss"),) * 5
    rank = UNKNOWN if math.isnan(score.spearman) else format_number(score.spearman, 0.05)
    return (
        Cell(text=format_error(score.mae, score.count)),
        Cell(text=format_error(score.mean_mae, score.count)),
        Cell(text=rank),
        Cell(text=f"{score.inside} of {score.count}"),
        Cell(text=format_number(score.width, score.width / 10)),
    )


# -------------------------------------------------------------------------------- influence


def influence_table(data: ReportData) -> Table:
    """Returns how each domain moves each target, as a heat map.

    A cell is the change of the loss when 0.01 of all tokens moves to the domain, taken from the
    others in proportion, starting at the optimum: the law's contrast over 1 - r_j.
    """
    domains = ranked_domains(data)
    value, error = _influences(data)
    order = [data.fit.domains.index(name) for name in domains]
    largest = max((abs(v) for v in value.flat if math.isfinite(v)), default=0.0) or 1.0
    is_wide = len(domains) > 8
    colours = domain_colours(data)
    rows: list[tuple[Cell, ...]] = []
    names = [(-1, "The objective")]
    names += [(data.fit.targets.index(t), clean_name(t)) for t in ranked_targets(data)]
    for row, name in names:
        cells = [
            _influence_cell(value[row, j], error[row, j], largest, is_wide=is_wide) for j in order
        ]
        rows.append((Cell(text=name), *cells))
    return Table(
        caption="Change of the loss per 0.01 of share that moves to a domain, in thousandths of"
        f" {unit_words(data)}",
        columns=(
            Cell(text="Target"),
            *(Cell(text=clean_name(name), chip=colours[name]) for name in domains),
        ),
        rows=tuple(rows),
        strong_rows=1,
        is_matrix=True,
    )


def most_helpful_domains(data: ReportData) -> dict[str, str]:
    """Returns, for each target, the domain whose share lowers its loss most, at the optimum."""
    fit = data.fit
    r_M = data.optimum.mixture.array(fit.domains)
    return {
        target: fit.domains[int(np.argmin(fit.law.contrasts(r_M, theta_P)))]
        for target, theta_P in zip(fit.targets, fit.theta_TP, strict=True)
    }


def _influences(
    data: ReportData,
) -> tuple[Float[np.ndarray, "T1 M"], Float[np.ndarray, "T1 M"]]:
    """Returns changes in thousandths and their standard errors; the objective is the last row."""
    fit = data.fit
    r_M = data.optimum.mixture.array(fit.domains)
    step_M = 0.01 * 1000 / np.maximum(1 - r_M, 1e-9)
    weight_T = weight_array(data)

    def moves(theta_TP: Float[np.ndarray, "T P"]) -> Float[np.ndarray, "T1 M"]:
        change_TM = np.stack([fit.law.contrasts(r_M, theta_P) for theta_P in theta_TP]) * step_M
        return np.vstack([change_TM, weight_T @ change_TM])

    draws = np.stack([moves(theta_TP) for theta_TP in fit.theta_draws_BTP])
    return moves(fit.theta_TP), np.std(draws, axis=0, ddof=1 if len(draws) > 1 else 0)


def _influence_cell(value: float, error: float, largest: float, *, is_wide: bool) -> Cell:
    full = format_with_error(value, error)
    sign = "+" if value > 0 else ""
    is_clear = abs(value) > 1.645 * error
    number = sign + format_number(value, error)
    return Cell(
        text=number if is_wide or not is_clear else sign + full,
        style=_heat_style(value / largest, is_clear=is_clear),
        hint=sign + full,
    )


def _heat_style(share: float, *, is_clear: bool) -> str:
    """Returns blue for a loss that falls, orange for one that rises, white for no change."""
    end = (33, 102, 172) if share < 0 else (201, 92, 20)
    strength = min(abs(share), 1.0) ** 0.6 * 0.9
    r, g, b = (round(255 + (channel - 255) * strength) for channel in end)
    luminance = 0.2126 * (r / 255) ** 2.2 + 0.7152 * (g / 255) ** 2.2 + 0.0722 * (b / 255) ** 2.2
    ink = "#ffffff" if luminance < 0.18 else "#14181d" if is_clear else "#4a525a"
    return f"background:#{r:02x}{g:02x}{b:02x};color:{ink}" + (
        "" if is_clear else ";font-style:italic"
    )
