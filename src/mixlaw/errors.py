"""One exception tree: what must hold, what was found, where, and what to do.

MixlawError
├── ConfigError          mixlaw.toml or an argument
├── DomainError          a domain or its caps
├── MixtureError         proportions that are no mixture
├── DesignError          mixtures that can't be sampled
├── CorpusError          token files and what they are made from
│   └── FetchError       the demo's text could not be fetched
├── TableError           runs or observations, imported or read back
├── RunError             a run, its folder or the store
│   └── TrainingError    training that went wrong, a diverged loss for one
├── FitError             too few or unusable observations
├── OptimizeError        an objective or a search that can't be answered
├── ExportError          a mixture that a framework can't take
├── StudyError           a study folder without what a stage needs
└── MissingExtraError    an optional dependency that is not installed
"""


class MixlawError(Exception):
    """The base of all errors that mixlaw raises for a reason that a user can act on.

    Args:
        problem: What must hold and what was found, in one sentence.
        where: The file, row, key or run, where the sentence does not name it.
        do: The way out.
    """

    exit_code = 1

    def __init__(self, problem: str, *, where: str | None = None, do: str | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.where = where
        self.do = do

    def __str__(self) -> str:
        text = self.problem if self.where is None else f"{self.problem}, in {self.where}"
        return text if self.do is None else f"{text}\n  do: {self.do}"

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.problem, self.where, self.do))


def _rebuild(
    kind: type[MixlawError], problem: str, where: str | None, do: str | None
) -> MixlawError:
    return kind(problem, where=where, do=do)


class ConfigError(MixlawError):
    """`mixlaw.toml` or an argument is not what it must be."""


class DomainError(MixlawError):
    """A domain or its caps make no sense."""


class MixtureError(MixlawError):
    """Proportions that are no mixture."""


class DesignError(MixlawError):
    """Mixtures that can't be sampled as asked."""


class CorpusError(MixlawError):
    """Token files, their manifest, or the text they are made from."""


class FetchError(CorpusError):
    """The demo's text could not be fetched."""


class TableError(MixlawError):
    """Runs or observations that can't be used."""


class RunError(MixlawError):
    """A run, its folder or the store."""


class TrainingError(RunError):
    """Training that went wrong, a loss that diverged for one."""


class FitError(MixlawError):
    """Too few or unusable observations."""


class OptimizeError(MixlawError):
    """An objective or a search that has no answer."""


class ExportError(MixlawError):
    """A mixture that a framework can't take."""


class StudyError(MixlawError):
    """A study folder that lacks what a stage needs."""


class MissingExtraError(MixlawError):
    """An optional dependency that is not installed."""

    @classmethod
    def of(cls, package: str, extra: str) -> "MissingExtraError":
        """Returns the error that names the install line of an extra."""
        return cls(
            f"this needs {package}, which is not installed", do=f"pip install 'mixlaw[{extra}]'"
        )
