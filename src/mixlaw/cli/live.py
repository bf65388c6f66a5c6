"""Live progress on standard error: a bar on a terminal, plain lines elsewhere.

Standard output holds results only.
"""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from mixlaw.runs import Progress as RunProgress

PLAIN_SECONDS = 5.0
"""Without a terminal, a line at most this often."""


class LiveProgress:
    """Shows what is being done, and how far it is.

    Args:
        quiet: Show nothing (for `--json`).
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self._quiet = quiet
        self._is_live = self._console.is_terminal and not quiet
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[state]}", markup=False),
            TimeElapsedColumn(),
            console=self._console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, float | None] = {}
        self._ended: set[str] = set()

    def __enter__(self) -> Self:
        if self._is_live:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_live:
            self._bar.stop()

    def say(self, line: str) -> None:
        """Shows a line that stays."""
        if not self._quiet:
            self._console.print(line, soft_wrap=True)
            sys.stderr.flush()

    def stage(self, text: str, done: float, total: float | None) -> None:
        """Shows how far a piece of work is; `total` None: not known."""
        state = f"{done / total:4.0%}" if total else ""
        self._show(text, state, done, total, ended=bool(total) and done >= (total or 0))

    def runs(self, progress: RunProgress) -> None:
        """Shows how far a sweep of runs is."""
        if progress.note and not progress.note.endswith("is done"):
            self.say(progress.note)
        ended = progress.done + progress.failed + progress.cancelled
        trained = sum(attempt.step / attempt.steps for attempt in progress.attempts)
        parts = [f"{progress.done}/{progress.total} runs"]
        if progress.failed:
            parts.append(f"{progress.failed} failed")
        if progress.elsewhere:
            parts.append(f"{progress.elsewhere} elsewhere")
        if progress.tokens_per_second:
            parts.append(f"{progress.tokens_per_second / 1000:.0f}k tokens/s")
        losses = [f"{a.loss:.2f}" for a in progress.attempts if a.loss is not None]
        if losses:
            parts.append(f"loss {' '.join(losses)}")
        if progress.seconds_left is not None and ended < progress.total:
            parts.append(f"{format_seconds(progress.seconds_left)} left")
        self._show(
            "training",
            ", ".join(parts),
            ended + trained,
            progress.total,
            ended=ended == progress.total,
        )

    def _show(
        self, text: str, state: str, done: float, total: float | None, *, ended: bool
    ) -> None:
        if self._quiet:
            return
        if self._is_live:
            if text not in self._tasks:
                self._tasks[text] = self._bar.add_task(text, total=total, state=state)
            self._bar.update(self._tasks[text], completed=done, total=total, state=state)
            return
        now = time.monotonic()
        said = self._said.get(text)
        if ended:
            self._said[text] = None
            if text not in self._ended:
                self._ended.add(text)
                self.say(f"{text}: {state}" if state else text)
        elif said is None or now - said >= PLAIN_SECONDS:
            self._ended.discard(text)
            self._said[text] = now
            self.say(f"{text}: {state}" if state else text)


def format_seconds(seconds: float) -> str:
    """Returns a duration for people: `42 s`, `3 min 5 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
