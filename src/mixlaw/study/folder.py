"""The study folder and what can be done with it; the command line does no more than call this."""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import polars as pl

from mixlaw import __version__
from mixlaw.config import FILE_NAME, Config, load_config, with_domain, write_template
from mixlaw.corpora import Corpus, CorpusDomain, add_domain
from mixlaw.errors import FitError, StudyError
from mixlaw.exporters import ExportResult, export_mixture, write_plan
from mixlaw.files import write_atomic
from mixlaw.fit import FitResult, fit_law
from mixlaw.fit.law import find_law
from mixlaw.fit.learners import MeanLearner
from mixlaw.importers import import_tables
from mixlaw.laws.base import MixingLaw
from mixlaw.laws.library import MIXING_LAWS
from mixlaw.mixtures import Mixture
from mixlaw.observations import (
    check_observations,
    check_runs,
    fill_shares,
    loss_target_names,
    proportion_domains,
)
from mixlaw.optimize import Optimum, WeightedLoss
from mixlaw.optimize.continual_runs import ContinualAnswer
from mixlaw.predict import Prediction, predict_losses, predict_weighted
from mixlaw.report import Attribution, ReportData, write_report
from mixlaw.runs import LocalExecutor, RunCounts, RunSpec, RunStore, read_tables
from mixlaw.runs import Progress as RunProgress
from mixlaw.runs.plan import Plan, PlannedRun, Role
from mixlaw.selection import (
    HoldoutScore,
    LawChoice,
    Validation,
    score_holdout,
    select_law,
    validate,
)
from mixlaw.selection.downstream import DownstreamFit
from mixlaw.selection.downstream_summary import Downstream
from mixlaw.selection.validation import all_baselines
from mixlaw.study.advising import NextRuns, advise_study, choose_study_group, with_next_runs
from mixlaw.study.artefacts import (
    load_choice,
    load_fit,
    save_choice,
    save_fit,
    save_json,
    table_hash,
    text_hash,
)
from mixlaw.study.continual import (
    CriticalOptions,
    answer_critical,
    reported_critical,
    train_critical,
)
from mixlaw.study.domain_changes import (
    DomainChange,
    apply_changes,
    change_notes,
    is_usable,
    read_changes,
    tie_law,
    tied_runs,
    unidentified,
    unseen,
)
from mixlaw.study.domain_edits import (
    ChangedDomains,
    add_domain_entry,
    merge_domains,
    record_added,
    split_domain,
    undo_change,
)
from mixlaw.study.downstream import downstream_fit, reported_downstream, study_downstream
from mixlaw.study.imported import Imported, keep_imported, read_imported
from mixlaw.study.optimizing import (
    ask,
    compared_mixtures,
    fit_for_question,
    main_trade_off,
    optimize_study,
    weighted_objective,
)
from mixlaw.study.plain import to_plain
from mixlaw.study.question import ImportedRegion, Question
from mixlaw.study.schedule import (
    ScheduleAnswer,
    answer_schedule,
    reported_schedule,
    train_schedules,
)
from mixlaw.study.timing import read_seconds, record_seconds
from mixlaw.study.tokens import proxy_domains, target_shares
from mixlaw.study.training import (
    base_spec,
    make_plan,
    make_trainer,
    plan_verification,
    serves_other_runs,
)
from mixlaw.verify import OPTIMUM, Verification, compare_runs

NUM_DRAWS = 200
"""Bootstrap draws of a study's fit."""

SELECT = "select"
"""Instead of a law's name: the one that predicts left-out mixtures best."""

Progress = Callable[[str, float, float | None], None]
"""Called with what is being done, how much is done, and of how much (None: not known)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyStatus:
    """What a study has, and how its runs stand."""

    name: str
    path: Path
    runs: Mapping[str, Mapping[str, int]]
    """Number of runs by role and status."""
    failures: Mapping[str, str]
    """Why each failed run failed."""
    sentences: tuple[str, ...]
    """What there is, and what comes next."""


class Study:
    """A folder that holds a question about mixtures, its runs and its answer.

    Args:
        path: The folder.
        config: What its `mixlaw.toml` says.
    """

    def __init__(self, path: Path, config: Config) -> None:
        self.path = path
        self.config = config

    @classmethod
    def open(cls, path: str | Path) -> "Study":
        """Returns the study in a folder.

        Raises:
            ConfigError: There is no `mixlaw.toml`, or something in it is wrong.
        """
        folder = Path(path)
        return cls(folder, load_config(folder / FILE_NAME))

    @classmethod
    def create(cls, path: str | Path, config: Config | None = None) -> "Study":
        """Makes a folder with a commented `mixlaw.toml`, and returns the study in it.

        Raises:
            StudyError: There is one already, or the folder can't be written.
        """
        folder = Path(path)
        file = folder / FILE_NAME
        if file.exists():
            raise StudyError(
                f"{folder} is a study already", do=f"edit {file}, or choose another folder"
            )
        if config is None:
            config = _default_config(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(file, write_template(config))
        except OSError as error:
            raise StudyError(
                f"a study must be a folder that can be written, but {folder} can't:"
                f" {error.strerror}",
                do="choose another folder",
            ) from error
        return cls(folder, config)

    @classmethod
    def for_import(cls, path: str | Path) -> "Study":
        """Returns the study in a folder; where there is none, one that the first import makes."""
        folder = Path(path)
        if (folder / FILE_NAME).exists():
            return cls.open(folder)
        return cls(folder, _default_config(folder))

    @cached_property
    def corpus(self) -> Corpus | None:
        """The token files; None: there are none (yet).

        Raises:
            CorpusError: They are damaged.
        """
        path = self.path / self.config.study.corpus
        return Corpus.open(path) if path.exists() else None

    @property
    def question(self) -> Question:
        """Domains, scale, objective and limits.

        Raises:
            StudyError: There are no domains anywhere.
            DomainError: Fewer than two domains, or two of one name.
        """
        changes = read_changes(self.path)
        imported = ImportedRegion.of(
            [(apply_changes(runs, changes), losses) for runs, losses in read_imported(self.path)]
        )
        return Question.of(self.config, self.corpus, imported)

    @cached_property
    def store(self) -> RunStore:
        """The state of all runs."""
        url = self.config.study.store
        local = url.removeprefix("sqlite:///")
        if local != url:  # a path, relative to the study
            return RunStore.at(self.path / local)
        return RunStore(url, coordinators_folder=self.path / "coordinators")

    @property
    def runs_folder(self) -> Path:
        """Where each run has its folder."""
        return self.path / "runs"

    # ------------------------------------------------------------------ before training

    def add_domain(
        self,
        name: str,
        paths: Sequence[str | Path],
        *,
        tokenizer: str | None = None,
        text_field: str = "text",
        licence: str | None = None,
        source: str | None = None,
        target_only: bool = False,
        replace: bool = False,
        progress: Progress | None = None,
    ) -> CorpusDomain:
        """Adds text to the corpus, names its domain in `mixlaw.toml`, and returns its counts.

        Args:
            name: The domain's name.
            paths: Text, JSONL or Parquet files, or folders of them.
            tokenizer: `bytes`, `bpe:SIZE` or a tokenizer.json; that of the corpus by default.
            text_field: Field or column that holds the text.
            licence: Licence of the text, for the report.
            source: Attribution, for the report.
            target_only: No mixture trains on it.
            replace: It may be there already.
            progress: Is told how far it is.

        Raises:
            CorpusError: The text can't be used, or the domain is there.
        """
        corpus_before = None if self.corpus is None else self.corpus.hash
        is_new = not target_only and (self.corpus is None or name not in self.corpus.training_names)
        added = add_domain(
            self.path / self.config.study.corpus,
            name,
            paths,
            tokenizer=tokenizer,
            text_field=text_field,
            licence=licence,
            source=source,
            target_only=target_only,
            replace=replace,
            progress=progress,
        )
        self.__dict__.pop("corpus", None)
        # Without [[domains]] all of the corpus count, a new one too; a list of one would not.
        corpus = self.corpus
        is_listed = bool(self.config.domains) or (
            corpus is not None and len(corpus.training_names) == 1
        )
        known = {domain.name for domain in self.config.domains}
        if not target_only and is_listed and name not in known:
            file = self.path / FILE_NAME
            write_atomic(file, with_domain(file.read_text(encoding="utf-8"), name))
            self.config = load_config(file)
        if is_new:
            record_added(self, name, corpus_before=corpus_before)
        return added

    def merge_domains(self, names: Sequence[str], into: str) -> ChangedDomains:
        """Makes one domain of several; see `mixlaw.study.domain_edits.merge_domains`."""
        return merge_domains(self, names, into)

    def split_domain(
        self, name: str, into: Sequence[str], *, shares: Sequence[float] | None = None
    ) -> ChangedDomains:
        """Makes several domains of one; see `mixlaw.study.domain_edits.split_domain`."""
        return split_domain(self, name, into, shares=shares)

    def name_domain(self, name: str, *, available_tokens: float | None = None) -> ChangedDomains:
        """Adds a domain without text, whose share in earlier runs is 0."""
        return add_domain_entry(self, name, available_tokens=available_tokens)

    def undo_domain_change(self) -> DomainChange:
        """Takes the last merge, split or addition back."""
        return undo_change(self)

    @property
    def domain_changes(self) -> tuple[DomainChange, ...]:
        """Merged, split and added domains, the oldest change first."""
        return read_changes(self.path)

    def plan(self) -> Plan:
        """Returns the runs to train: the design, its repetitions and the held-out mixtures.

        Raises:
            DesignError: So many mixtures can't be drawn.
            StudyError: The study has no domains.
        """
        return with_next_runs(make_plan(self.question, self.corpus), self)

    def advise(
        self,
        n: int | None = None,
        *,
        method: str = "optimum",
        tokens: float | None = None,
        flops: float | None = None,
        keep: bool = False,
        on_progress: Progress | None = None,
    ) -> NextRuns:
        """Returns the mixtures to run next; see `mixlaw.study.advising.advise_study`."""
        return advise_study(
            self, n, method=method, tokens=tokens, flops=flops, keep=keep, on_progress=on_progress
        )

    def best_group(self, size: int) -> dict[str, Mixture]:
        """Returns the mixtures, by their run, whose law predicts all the others best."""
        return choose_study_group(self, size)

    def write_plan(
        self, folder: str | Path, *, prefixes: Mapping[str, str] | None = None
    ) -> tuple[Path, ...]:
        """Writes the mixtures as CSV, JSON and Megatron blends, and returns the files.

        Args:
            folder: Where to.
            prefixes: Megatron's data prefix of each domain.

        Raises:
            ExportError: A prefix is one that Megatron can't take.
        """
        question = self.question
        return write_plan(
            self.plan(),
            folder,
            domains=question.domains
            if self.corpus is None
            else proxy_domains(question, self.corpus),
            scale=question.proxy_scale if question.has_corpus else question.scale,
            prefixes=prefixes,
        )

    # ------------------------------------------------------------------ getting observations

    def run(
        self,
        *,
        slots: int | None = None,
        retry: bool = False,
        on_runs: Callable[[RunProgress], None] | None = None,
    ) -> RunCounts:
        """Trains all planned runs that are not done, and returns how they ended.

        Args:
            slots: Runs at once; those of `mixlaw.toml`, else one per CPU core.
            retry: Try runs again that have failed.
            on_runs: Is told how far it is.

        Raises:
            StudyError: There is no corpus to train on.
            KeyboardInterrupt: It was asked to stop, and all is safe on disk.
        """
        planned = self.plan()
        if not planned.runs:
            raise StudyError(
                "proxies need text to train on, and the study has no corpus",
                where=str(self.path),
                do="add text with `mixlaw domains add`, or import runs with `mixlaw import`",
            )
        return self.train_planned(planned.runs, slots=slots, retry=retry, on_runs=on_runs)

    def train_planned(
        self,
        planned: Sequence[PlannedRun],
        *,
        slots: int | None,
        retry: bool,
        on_runs: Callable[[RunProgress], None] | None,
        stage: str = "train",
    ) -> RunCounts:
        """Trains planned runs that are not done, those of other plans left alone.

        Args:
            planned: The runs.
            slots: Runs at once.
            retry: Try runs again that have failed.
            on_runs: Is told how far it is.
            stage: Under which name the time is kept.
        """
        by_role: dict[Role, list[RunSpec]] = {}
        for entry in planned:
            by_role.setdefault(entry.role, []).append(entry.spec)
        for role, specs in by_role.items():
            self.store.add(specs, role=role)
        trainer = make_trainer(
            self.config,
            self.path / self.config.study.corpus,
            keep_weights="original" in by_role,
        )
        executor = LocalExecutor(
            store=self.store,
            runs_folder=self.runs_folder,
            slots=slots or self.config.study.slots,
        )
        run_ids = {entry.spec.run_id for entry in planned}
        if retry:
            self.store.retry(run_ids)
        start = time.monotonic()
        counts = executor.run(trainer, run_ids=run_ids, on_progress=on_runs)
        if counts.reused < counts.total:  # a sweep that only looked took no time worth telling
            record_seconds(self.path, stage, time.monotonic() - start)
        return counts

    def import_tables(
        self,
        runs: str | Path,
        metrics: str | Path | None = None,
        *,
        key: str | None = None,
        proportions: str | None = None,
        losses: str | None = None,
        columns: Mapping[str, str] | None = None,
        unit: str = "nats_per_token",
        errors: str | None = None,
        source: str | None = None,
        tolerance: float = 0.02,
        drop_unmatched: bool = False,
        dry_run: bool = False,
    ) -> Imported:
        """Imports runs that a team already has, keyed by source and source id; twice is once.

        Args:
            runs: Table of runs: CSV, TSV, JSONL or Parquet.
            metrics: Table of losses, where that is another file.
            key: Column that joins them.
            proportions: Pattern of the columns of shares, such as `mix/{domain}`.
            losses: Pattern of the columns of losses, such as `val/{target}`.
            columns: Columns of further fields, such as {"step": "iter"}.
            unit: nats_per_token, bits_per_byte or error.
            errors: Pattern of the columns of task errors, such as `error/{task}`.
            source: Name of the source, which tells its runs from others'; the file's by default.
            tolerance: How far a row's sum may be from one; it is then rescaled, and that is noted.
            drop_unmatched: Leave out runs that only one of the files has.
            dry_run: Say what was matched, keep nothing.

        Raises:
            TableError: The tables can't be read, matched or joined.
        """
        tables = import_tables(
            runs,
            metrics,
            key=key,
            proportions=proportions,
            losses=losses,
            columns=columns,
            unit=unit,
            errors=errors,
            source=source,
            tolerance=tolerance,
            drop_unmatched=drop_unmatched,
        )
        imported = Imported.of(tables)
        if dry_run:
            return imported
        name = source or Path(runs).name
        if not (self.path / FILE_NAME).exists():
            Study.create(self.path, self.config)
        _, has_replaced = keep_imported(self.path, tables, source=name)
        if not has_replaced:
            return imported
        note = f"this replaces an earlier import named {name!r}; --source tells two apart"
        return replace(imported, notes=(*imported.notes, note))

    def status(self) -> StudyStatus:
        """Returns what the study has, and how its runs stand."""
        rows = self.store.rows() if self.has_store() else []
        counts: dict[str, dict[str, int]] = {}
        for row in rows:
            of_role = counts.setdefault(row.role, {})
            of_role[row.status] = of_role.get(row.status, 0) + 1
        for runs, _ in read_imported(self.path):
            of_role = counts.setdefault("imported", {"done": 0})
            of_role["done"] += runs.height
        plain = [r for r in rows if r.status == "done" and not serves_other_runs(r)]
        current = set(self._current_runs()) if plain else set[str]()
        unused = sum(row.run_id not in current for row in plain)
        return StudyStatus(
            name=self.config.study.name,
            path=self.path,
            runs=counts,
            failures={row.run_id: row.error or "" for row in rows if row.status == "failed"},
            sentences=self._what_is_there(counts, unused, others=sum(map(serves_other_runs, rows))),
        )

    def tables(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Returns runs and observations, imported and trained here as the study now says.

        Runs of another corpus, recipe, length or set of domains, from before `mixlaw.toml` or the
        text was changed, are left out: their losses can't be compared with those of today's.

        Raises:
            StudyError: There are none.
            RunError: A run's files are missing or damaged.
        """
        parts = read_imported(self.path)
        if self.has_store():
            runs, observations = read_tables(self.store, self.runs_folder)
            runs = runs.filter(pl.col("run_id").is_in(self._current_runs()))
            runs = target_shares(runs, self.config, self.corpus)
            parts.append((runs, observations.join(runs, on="run_id", how="semi")))
        parts = [part for part in parts if part[0].height]
        if not parts:
            raise StudyError(
                "the study has no finished runs",
                where=str(self.path),
                do="train some with `mixlaw run`, or import them with `mixlaw import`",
            )
        changes = read_changes(self.path)
        changed = [apply_changes(part[0], changes) for part in parts]
        runs = check_runs(fill_shares(pl.concat(changed, how="diagonal")))
        return runs, check_observations(pl.concat([part[1] for part in parts]))

    # ------------------------------------------------------------------ the answer

    def choice(
        self,
        *,
        law: str | None = None,
        step: int | None = None,
        on_progress: Progress | None = None,
    ) -> LawChoice | None:
        """Returns which law predicts left-out mixtures best; None: the law is given by its name.

        A choice that was made from the same observations and objective is reused.

        Args:
            law: `select`, or a name instead of that of `mixlaw.toml`.
            step: Step of the losses; the last step that the runs share, by default.
            on_progress: Is told how far it is.

        Raises:
            StudyError: There are no finished runs, or none was observed at that step.
            FitError: Too few mixtures, or losses that can't be used.
            OptimizeError: The objective weighs what is not measured.
        """
        if (law or self.config.fit.law) != SELECT:
            return None
        runs, observations = self.fitted_tables()
        runs = tied_runs(runs, unidentified(runs, read_changes(self.path)))
        weights = self.question.objective(loss_target_names(observations)).shares
        key = f"{table_hash(runs, observations)}-{text_hash(repr(weights))}-{__version__}"
        kept = load_choice(self.path / "fits", key=key) if step is None else None
        if kept is not None:
            return kept
        if step is not None:
            _check_step(step, observations)
        with self._timed("select"):
            choice = select_law(
                runs,
                observations,
                weights=weights,
                step=step,
                on_progress=_stage(on_progress, "choosing the law"),
            )
        if step is None:
            save_choice(choice, self.path / "fits", key=key)
        return choice

    def fit(
        self,
        *,
        law: str | None = None,
        step: int | None = None,
        on_progress: Progress | None = None,
    ) -> FitResult:
        """Returns the fitted law; a fit that was made from the same observations is reused.

        Args:
            law: A law's name, or `select`, for a look: such a fit is not kept, and no other stage
                uses it. That of `mixlaw.toml` by default.
            step: Step of the losses, for a look as well. The last step that the runs share, by
                default.
            on_progress: Is told how far it is.

        Raises:
            StudyError: There are no finished runs, or none was observed at that step.
            FitError: There is no such law; too few mixtures, or losses that can't be used.
            OptimizeError: The objective weighs what is not measured.
        """
        runs, observations = self.fitted_tables()
        if step is not None:
            _check_step(step, observations)
        chosen = self._law(law=law, step=step, on_progress=on_progress)
        changes = read_changes(self.path)
        ties = unidentified(runs, changes)
        chosen = tie_law(chosen, proportion_domains(runs), ties)
        notes = change_notes(ties, unseen(runs, changes), changes)
        if step is not None:  # a look at another step; what the study keeps is for the last one
            looked = fit_law(chosen, runs, observations, step=step)
            return replace(looked, notes=(*looked.notes, *notes))
        key = (
            f"{table_hash(runs, observations)}-{text_hash(repr(chosen))}-{NUM_DRAWS}-{__version__}"
        )
        kept = load_fit(self.path / "fits", chosen, key=key)
        if kept is not None:
            return kept
        with self._timed("fit"):
            fitted = fit_law(
                chosen,
                runs,
                observations,
                num_draws=NUM_DRAWS,
                on_progress=_stage(on_progress, "fitting"),
            )
        fitted = replace(fitted, notes=(*fitted.notes, *notes))
        if law in (None, self.config.fit.law):
            save_fit(fitted, self.path / "fits", key=key)
        return fitted

    def validate(
        self,
        *,
        laws: Sequence[str] | None = None,
        num_folds: int | None = None,
        repeats: int = 3,
        with_all: bool = False,
        on_progress: Progress | None = None,
    ) -> Validation:
        """Returns how well laws and baselines predict what they did not see.

        Args:
            laws: Names of laws; those that are worth their time by default.
            num_folds: Folds of the cross-validation over mixtures.
            repeats: How often mixtures are dealt into folds anew.
            with_all: Every law, and the baselines that need the `baselines` extra if it is there.
            on_progress: Is told how far it is.

        Raises:
            StudyError: There are no finished runs.
            FitError: There is no such law, or too few mixtures.
            OptimizeError: The objective weighs what is not measured.
        """
        runs, observations = self.fitted_tables()
        return validate(
            runs,
            observations,
            laws=tuple(MIXING_LAWS) if with_all and laws is None else laws,
            weights=self.question.objective(loss_target_names(observations)).shares,
            num_folds=num_folds,
            repeats=repeats,
            baselines=all_baselines() if with_all else (MeanLearner(),),
            on_progress=_stage(on_progress, "leaving out"),
        )

    def score(self, fit: FitResult | None = None) -> HoldoutScore | None:
        """Returns how well a fit predicts the held-out runs; None: there are none."""
        fit = self.fit() if fit is None else fit
        runs, observations = self.tables()
        return score_holdout(fit, runs, observations, self._objective(fit).shares)

    def predict(self, mixtures: Sequence[Mixture]) -> Prediction:
        """Returns the losses of mixtures with 90% intervals of a new run, the objective last.

        They are those of the run that is to be decided, as in `optimize`.

        Raises:
            MixtureError: A mixture has other domains than the study.
        """
        fit, notes = fit_for_question(self)
        each = predict_losses(fit, mixtures)
        both = each.joined(predict_weighted(fit, mixtures, self._objective(fit).shares))
        return replace(both, notes=(*both.notes, *notes))

    def downstream(
        self,
        mixtures: Sequence[Mixture] = (),
        *,
        tasks: Sequence[str] | None = None,
        losses: Sequence[str] | None = None,
    ) -> Downstream:
        """Returns how losses and task errors go together, and the task errors of mixtures.

        Args:
            mixtures: Mixtures to predict.
            tasks: Which tasks; all by default.
            losses: Which losses the tasks are predicted from; what predicts best by default.

        Raises:
            StudyError: There are no finished runs.
            FitError: There are no tasks; or mixtures are asked for and no mixing law can be fitted.
        """
        return study_downstream(self, mixtures, tasks=tasks, losses=losses)

    def downstream_fit(self, *, tasks: Sequence[str] | None = None) -> DownstreamFit:
        """Returns the chain from mixtures to task errors; errors are those of `downstream`."""
        return downstream_fit(self, tasks=tasks)

    def optimize(
        self,
        *,
        weights: Mapping[str, float] | None = None,
        config: Config | None = None,
        on_progress: Progress | None = None,
    ) -> Optimum:
        """Returns the best mixture under the law and the constraints.

        The answer to the study's own question is kept as `optimum.json`.

        Args:
            weights: Weights of targets; those of `mixlaw.toml` by default.
            config: Another question about the same runs: objective, constraints, scale.
            on_progress: Is told how far it is.

        Raises:
            ConfigError: The objective or a constraint can't be read.
            OptimizeError: The objective or the search has no answer, or the constraints conflict.
            MixtureError: Floors and caps conflict.
        """
        asked = self.config if config is None else config
        if weights is not None:
            asked = replace(asked, objective=replace(asked.objective, weights=weights))
        self.fit(on_progress=on_progress)
        with self._timed("optimize"):
            best = optimize_study(self, asked)
        if asked == self.config:
            key = table_hash(*self.fitted_tables())
            save_json(self.path / "optimum.json", to_plain(best), made_from=key)
        return best

    def critical(self, options: CriticalOptions | None = None) -> ContinualAnswer:
        """Returns the smallest share of original data that keeps the old loss (`[continual]`).

        Args:
            options: What is asked instead of what `mixlaw.toml` says.

        Raises:
            StudyError: There are no runs that go on from a model, or the question is not complete.
            OptimizeError: The original loss is not known, or domains make no sense.
            FitError: Too few shares were run.
        """
        return answer_critical(self, options)

    def train_critical(
        self,
        options: CriticalOptions | None = None,
        *,
        slots: int | None = None,
        retry: bool = False,
        on_runs: Callable[[RunProgress], None] | None = None,
    ) -> RunCounts:
        """Trains the original model and the runs that go on from it (`[continual]`).

        Args:
            options: What is asked instead of what `mixlaw.toml` says.
            slots: Runs at once.
            retry: Try runs again that have failed.
            on_runs: Is told how far it is.

        Raises:
            StudyError: There is no corpus, or the question is not complete.
        """
        return train_critical(self, options, slots=slots, retry=retry, on_runs=on_runs)

    def schedule(
        self,
        *,
        fractions: Sequence[float] | None = None,
        weights: Mapping[str, float] | None = None,
        on_progress: Progress | None = None,
    ) -> ScheduleAnswer:
        """Returns the best mixture for each stage of the run, and its gain over a constant one.

        Args:
            fractions: Share of the tokens that each stage takes; those of `[schedule]` by default.
            weights: Weights of targets; those of `mixlaw.toml` by default.
            on_progress: Is told how far it is.

        Raises:
            StudyError: There are no runs whose mixture changes on the way.
            FitError: There are too few of them.
            OptimizeError: The objective or the search has no answer, or the constraints conflict.
        """
        return answer_schedule(self, fractions=fractions, weights=weights, on_progress=on_progress)

    def train_schedules(
        self,
        *,
        slots: int | None = None,
        retry: bool = False,
        on_runs: Callable[[RunProgress], None] | None = None,
    ) -> RunCounts:
        """Trains the runs of `[schedule]`, whose mixture changes on the way.

        Args:
            slots: Runs at once.
            retry: Try runs again that have failed.
            on_runs: Is told how far it is.

        Raises:
            StudyError: There is no corpus.
        """
        return train_schedules(self, slots=slots, retry=retry, on_runs=on_runs)

    def verify(
        self,
        *,
        slots: int | None = None,
        seeds: int | None = None,
        retry: bool = False,
        on_runs: Callable[[RunProgress], None] | None = None,
        on_progress: Progress | None = None,
    ) -> Verification:
        """Trains the optimum and the baselines with fresh seeds, and returns the comparison.

        Args:
            slots: Runs at once.
            seeds: Seeds of each mixture; those of `mixlaw.toml` by default.
            retry: Try runs again that have failed.
            on_runs: Is told how far the runs are.
            on_progress: Is told how far the fit is.

        Raises:
            StudyError: There is no corpus to train on, or a mixture's runs failed.
        """
        if self.corpus is None:
            raise StudyError(
                "verification trains models, and the study has no corpus",
                where=str(self.path),
                do="add the text of the same domains with `mixlaw domains add`",
            )
        best = self.optimize(on_progress=on_progress)
        self._refuse_imported_fit()
        planned = plan_verification(
            self.question,
            self.corpus,
            compared_mixtures(best, OPTIMUM),
            seeds=seeds or self.config.verify.seeds,
        )
        counts = self.train_planned(
            planned, slots=slots, retry=retry, on_runs=on_runs, stage="verify"
        )
        verified = self._compare(best)
        if verified is None or counts.failed:
            raise StudyError(
                f"{counts.failed} of {counts.total} verification runs failed: too few seeds are"
                " left to compare",
                where=str(self.path),
                do="see why with `mixlaw status`, then run `mixlaw verify --retry`",
            )
        key = table_hash(*self.tables())
        save_json(self.path / "verification.json", to_plain(verified), made_from=key)
        return verified

    def report(
        self, path: str | Path | None = None, *, on_progress: Progress | None = None
    ) -> Path:
        """Writes the report and returns its path, `report.html` in the study by default.

        Raises:
            StudyError: There are no finished runs, or the path can't be written.
        """
        fit = self.fit(on_progress=on_progress)
        best = self.optimize()
        asked = ask(self)
        runs, observations = self.tables()
        question = self.question
        target = self.path / "report.html" if path is None else Path(path)
        with self._timed("report"), _writing(target):
            return write_report(
                ReportData(
                    study=self.config.study.name,
                    version=__version__,
                    created=datetime.now(UTC).isoformat(timespec="seconds"),
                    domains=question.domains,
                    scale=question.scale,
                    proxy_params=fitted_params(fit, runs),
                    proxy_tokens=fit.table.tokens,
                    is_extrapolated=best.is_extrapolated,
                    runs=runs,
                    observations=observations,
                    fit=fit,
                    choice=self.choice(),
                    optimum=best,
                    holdout=self.score(fit),
                    verification=self._compare(best),
                    schedule=reported_schedule(self),
                    critical=reported_critical(self),
                    downstream=reported_downstream(
                        self, [best.mixture, *(gain.mixture for gain in best.gains)]
                    ),
                    bytes_per_token=self._bytes_per_token(),
                    attributions=self._attributions(),
                    seconds=read_seconds(self.path),
                    answer_fit=None if asked.fit is asked.own_fit else asked.fit,
                    front=main_trade_off(asked, best),
                    made_from=table_hash(runs, observations),
                ),
                target,
            )

    def export(
        self,
        framework: str,
        path: str | Path | None = None,
        *,
        mixture: Mixture | None = None,
        prefixes: Mapping[str, str] | None = None,
    ) -> ExportResult:
        """Writes the optimum, or a given mixture, for a training framework.

        Args:
            framework: json, csv or megatron.
            path: Where to; `mixture.*` in the current folder by default.
            mixture: A mixture instead of the optimum.
            prefixes: Megatron's data prefix of each domain.

        Raises:
            ExportError: The framework is not known or can't take the mixture.
        """
        question = self.question
        chosen = self.optimize().mixture if mixture is None else mixture
        suffix = {"megatron": "megatron.txt"}.get(framework, framework)
        return export_mixture(
            chosen.reordered(question.names),
            framework=framework,
            path=Path(f"mixture.{suffix}") if path is None else path,
            domains=question.domains,
            scale=question.scale,
            prefixes=prefixes,
        )

    # ------------------------------------------------------------------ inside

    def _law(self, *, law: str | None, step: int | None, on_progress: Progress | None) -> MixingLaw:
        """Returns the law to fit: the named one, or the one that is chosen."""
        choice = self.choice(law=law, step=step, on_progress=on_progress)
        if choice is not None:
            return choice.best
        try:
            return find_law(law or self.config.fit.law)
        except FitError as error:
            raise FitError(
                error.problem,
                where=None if law else "[fit] in mixlaw.toml",
                do=f"{error.do}; or let it be chosen, with {SELECT!r}",
            ) from None

    def _refuse_imported_fit(self) -> None:
        """Refuses to compare proxies trained here with the law of runs from elsewhere."""
        runs, _ = self.fitted_tables()
        if (runs["role"] == "imported").any():
            raise StudyError(
                "verification trains this study's own proxies, but the law was fitted to imported"
                " runs, which they can't be compared with",
                where=str(self.path),
                do="export the optimum, train it and the baselines with the trainer of those runs",
            )

    def _current_runs(self) -> list[str]:
        """Returns the runs that were trained as the study now says."""
        rows = self.store.rows()
        if self.corpus is None:  # nothing can be trained now: the last ones count
            base = rows[-1].spec if rows else None
        else:
            base = base_spec(self.question, self.corpus)
        changes = read_changes(self.path)
        return [
            row.run_id for row in rows if base is not None and is_usable(row.spec, base, changes)
        ]

    def has_store(self) -> bool:
        """Returns whether any run was ever planned to be trained here."""
        url = self.config.study.store
        local = url.removeprefix("sqlite:///")
        return local == url or (self.path / local).exists()

    def fitted_tables(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Returns the tables without what no fit may see: held-out and verification runs."""
        runs, observations = self.tables()
        runs = runs.filter(pl.col("role").is_in(["design", "noise", "imported"]))
        return runs, observations.join(runs.select("run_id"), on="run_id", how="semi")

    def _objective(self, fit: FitResult) -> WeightedLoss:
        return self.question.objective(fit.targets)

    def _compare(self, best: Optimum) -> Verification | None:
        """Returns what the verification runs of this optimum say; None: it has none."""
        runs, observations = self.tables()
        mixtures = compared_mixtures(best, OPTIMUM)
        ids = runs.filter(pl.col("role") == "verify")["mixture_id"].to_list()
        if any(mixture.mixture_id not in ids for mixture in mixtures.values()):
            return None
        fit = self.fit()
        chosen, objective = list(mixtures.values()), weighted_objective(best)
        return compare_runs(
            runs,
            observations,
            mixtures=mixtures,
            objective=objective,
            predicted=predict_weighted(fit, chosen, objective.shares),
            predicted_targets=predict_losses(fit, chosen),
        )

    def _bytes_per_token(self) -> dict[str, float]:
        corpus = self.corpus
        return {} if corpus is None else {d.name: d.bytes_per_token for d in corpus.domains}

    def _attributions(self) -> tuple[Attribution, ...]:
        corpus = self.corpus
        return (
            ()
            if corpus is None
            else tuple(
                Attribution(domain=d.name, source=d.source, licence=d.licence)
                for d in corpus.domains
            )
        )

    def _what_is_there(
        self, counts: Mapping[str, Mapping[str, int]], unused: int, *, others: int = 0
    ) -> tuple[str, ...]:
        kept = {
            "fits/fit.json": "a fit",
            "optimum.json": "an optimum",
            "verification.json": "a verification",
            "report.html": "a report",
        }
        there = [text for name, text in kept.items() if (self.path / name).exists()]
        sentences = [f"there is {', '.join(there)}" if there else "nothing is fitted yet"]
        if unused:
            sentences.append(
                f"{unused} runs of an earlier text or configuration are kept, but not used"
            )
        if others:
            sentences.append(
                f"{others} of the runs have stages, or belong to continual pre-training:"
                " `mixlaw schedule` and `mixlaw critical` read them, an ordinary fit does not"
            )
        if not counts:
            sentences.append("next: `mixlaw plan`, then `mixlaw run`; or `mixlaw import`")
        elif not there:
            sentences.append("next: `mixlaw fit`, then `mixlaw optimize`")
        if any("failed" in of_role for of_role in counts.values()):
            sentences.append(
                "failed runs stay out of the fit; their folders hold log.txt, and `--retry` of"
                " `mixlaw run` or `mixlaw verify` tries them again"
            )
        return tuple(sentences)

    @contextmanager
    def _timed(self, stage: str) -> Generator[None]:
        start = time.monotonic()
        yield
        record_seconds(self.path, stage, time.monotonic() - start)


def _stage(on_progress: Progress | None, name: str) -> Callable[[float], None] | None:
    """Returns what is told the share of a stage that is done."""
    return None if on_progress is None else lambda share: on_progress(name, share, 1.0)


def _default_config(folder: Path) -> Config:
    """Returns the default configuration, named after the folder."""
    name = folder.resolve().name or "study"
    return Config(study=replace(Config().study, name=name))


def _check_step(step: int, observations: pl.DataFrame) -> None:
    steps = sorted(observations["step"].unique().to_list())
    if step not in steps:
        shown = [str(known) for known in steps]
        if len(shown) > 12:
            shown = [*shown[:6], "...", *shown[-5:]]
        raise StudyError(
            f"no run was observed at step {step}", do=f"the steps are {', '.join(shown)}"
        )


@contextmanager
def _writing(path: Path) -> Generator[None]:
    """Names the file that can't be written."""
    try:
        yield
    except OSError as error:
        raise StudyError(
            f"{path} can't be written: {error.strerror or error}",
            do="name a file in a folder that exists",
        ) from error


def fitted_params(fit: FitResult, runs: pl.DataFrame) -> float | None:
    """Returns the parameters of the fitted runs, without embeddings; None: not known."""
    chosen = runs.filter(pl.col("run_id").is_in(list(fit.table.run_ids)))
    sizes = chosen["params_non_embedding"].drop_nulls().unique().to_list()
    return sizes[0] if len(sizes) == 1 else None
