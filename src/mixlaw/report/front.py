"""The figure of the trade-off between two objectives."""

import numpy as np

from mixlaw.report.answer import front_sentence
from mixlaw.report.data import ReportData
from mixlaw.report.decision import predicted_losses
from mixlaw.report.figures import drawing, find_limits, finish, plot_marks, set_plain_axis
from mixlaw.report.palette import MUTED, clean_name, mixture_styles
from mixlaw.report.sentences import unit_words
from mixlaw.verify import OPTIMUM


def draw_front(data: ReportData) -> str:
    """Returns the losses of two targets along their front, the optimum and the baselines beside."""
    front = data.front
    assert front is not None
    names = [front.first.removeprefix("1 "), front.second.removeprefix("1 ")]
    points = np.array([(point.first, point.second) for point in front.points])
    styles = mixture_styles(data)
    mixtures = {OPTIMUM: data.optimum.mixture}
    mixtures |= {gain.baseline: gain.mixture for gain in data.optimum.gains}
    places = {
        name: [predicted_losses(data, mixture)[target] for target in names]
        for name, mixture in mixtures.items()
    }
    with drawing(300) as (figure, axes):
        x, y = points[:, 0, 0], points[:, 1, 0]
        axes.plot(x, y, "-o", color=MUTED, linewidth=1.5, markersize=3)
        for name, (first, second) in places.items():
            plot_marks(axes, np.array([first]), np.array([second]), styles[name])
        axes.set(
            xlim=find_limits([*x, *(place[0] for place in places.values())]),
            ylim=find_limits([*y, *(place[1] for place in places.values())]),
            xlabel=f"loss on {clean_name(names[0])}, {unit_words(data)}",
            ylabel=f"loss on {clean_name(names[1])}",
        )
        set_plain_axis(axes, "x")
        set_plain_axis(axes, "y")
        return finish(
            figure,
            key="front",
            title=f"Trade-off between {clean_name(names[0])} and {clean_name(names[1])}",
            description=front_sentence(data),
        )
