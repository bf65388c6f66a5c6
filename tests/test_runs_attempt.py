import errno
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import runs_sgd
from mixlaw.errors import RunError, TrainingError
from mixlaw.runs.attempt import Attempt, Interrupted
from mixlaw.runs.folder import (
    METRICS_FILE,
    MetricsRow,
    TrainingSummary,
    check_metrics,
    encode_metrics,
    full_disk_named,
    read_log_tail,
    read_metrics,
    read_result,
    write_result,
)

SUMMARY = TrainingSummary(
    params_non_embedding=10,
    params_total=20,
    learning_rate=0.01,
    wall_seconds=1.5,
    cpu_seconds=1.0,
    tokens=640,
)

evaluations = st.builds(
    MetricsRow,
    step=st.integers(0, 10**9),
    tokens=st.integers(0, 10**15),
    values=st.dictionaries(
        st.text(max_size=20),
        st.tuples(
            st.floats(allow_nan=False, allow_infinity=False),
            st.none() | st.floats(0, allow_nan=False, allow_infinity=False),
        ),
        max_size=4,
    ),
    unit=st.sampled_from(["nats_per_token", "bits_per_byte", "error"]),
    units=st.dictionaries(st.text(max_size=20), st.just("error"), max_size=2),
)


@given(rows=st.lists(evaluations, max_size=4), cut=st.integers(0, 200))
@settings(max_examples=100)
def test_metrics_keep_every_bit_and_a_torn_last_line_is_dropped(
    rows: list[MetricsRow], cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "torn.jsonl"
    content = encode_metrics(rows)
    path.write_bytes(content)
    assert read_metrics(path) == rows
    kept = content[: max(0, len(content) - cut)]
    path.write_bytes(kept)
    assert read_metrics(path) == rows[: kept.count(b"\n")]


def test_appending_after_a_torn_line_spoils_nothing(tmp_path: Path) -> None:
    attempt = Attempt(folder=tmp_path)
    attempt.append_metrics(0, 0, {"web": (2.0, 0.1)})
    attempt.append_metrics(5, 50, {"web": (1.5, None)})
    path = tmp_path / METRICS_FILE
    path.write_bytes(path.read_bytes()[:-7])
    later = Attempt(folder=tmp_path)
    assert [row.step for row in later.metrics()] == [0]
    later.append_metrics(5, 50, {"web": (1.5, None)})
    assert [row.values for row in read_metrics(path)] == [{"web": (2.0, 0.1)}, {"web": (1.5, None)}]


def test_resuming_drops_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    attempt = Attempt(folder=tmp_path)
    for step in (0, 4, 8):
        attempt.append_metrics(step, step * 10, {"web": (3.0 - step / 10, None)})
    attempt.resume_from(4)
    assert [row.step for row in attempt.metrics()] == [0, 4]
    assert [row.step for row in read_metrics(tmp_path / METRICS_FILE)] == [0, 4]
    attempt.append_metrics(8, 80, {"web": (2.2, None)})
    assert [row.step for row in read_metrics(tmp_path / METRICS_FILE)] == [0, 4, 8]


def test_the_same_evaluation_counts_once_and_another_is_an_error(tmp_path: Path) -> None:
    attempt = Attempt(folder=tmp_path)
    attempt.append_metrics(4, 40, {"web": (3.0, 0.5)})
    attempt.append_metrics(4, 40, {"web": (3.0, 0.5)})
    assert len(read_metrics(tmp_path / METRICS_FILE)) == 1
    with pytest.raises(RunError, match="after step 4 it measured step 4, with another result"):
        attempt.append_metrics(4, 40, {"web": (3.1, 0.5)})
    with pytest.raises(RunError, match="after step 4 it measured step 2"):
        attempt.append_metrics(2, 20, {"web": (3.1, 0.5)})


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_a_training_error(tmp_path: Path, loss: float) -> None:
    with pytest.raises(TrainingError, match=rf"that of '../x' is {loss} after step 7"):
        Attempt(folder=tmp_path).append_metrics(7, 70, {"../x": (loss, None)})
    assert not (tmp_path / METRICS_FILE).exists()


def test_a_standard_error_that_is_no_number_is_not_known(tmp_path: Path) -> None:
    Attempt(folder=tmp_path).append_metrics(0, 0, {"web": (2.0, math.nan)})
    assert read_metrics(tmp_path / METRICS_FILE)[0].values == {"web": (2.0, None)}


def test_a_spoiled_line_of_metrics_is_named(tmp_path: Path) -> None:
    path = tmp_path / METRICS_FILE
    row = MetricsRow(step=0, tokens=0, values={"web": (1.0, None)}, unit="nats_per_token")
    path.write_bytes(b'{"step": 0}\n' + encode_metrics([row]))
    with pytest.raises(RunError, match=r"line 1 must be an evaluation .*in .*metrics.jsonl"):
        read_metrics(path)


def test_a_finished_run_has_all_its_evaluations(tmp_path: Path) -> None:
    (spec,) = runs_sgd.make_specs(1, steps=6)  # evaluated at 0, 2, 4 and 6
    attempt = Attempt(folder=tmp_path)
    attempt.append_metrics(0, 0, {"web": (2.0, None)})
    with pytest.raises(RunError, match=r"each of the steps \[0, 2, 4, 6\], found \[0\]"):
        check_metrics(tmp_path, spec)
    for step in (2, 4, 6):
        attempt.append_metrics(step, step, {"code" if step == 6 else "web": (2.0, None)})
    with pytest.raises(RunError, match="must be of web, but that at step 6 is of code"):
        check_metrics(tmp_path, spec)


def test_a_result_is_that_of_its_run(tmp_path: Path) -> None:
    spec, other = runs_sgd.make_specs(2)
    assert read_result(tmp_path, spec.run_id) is None
    path = write_result(tmp_path, spec, SUMMARY)
    assert read_result(tmp_path, spec.run_id) == SUMMARY
    with pytest.raises(RunError, match=f"result of run '{other.run_id}', found that of run"):
        read_result(tmp_path, other.run_id)
    path.write_text("{")
    with pytest.raises(RunError, match="found something else"):
        read_result(tmp_path, spec.run_id)


def test_a_full_disk_is_called_that(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"the disk is full, in /dev/full\n  do: make space"):  # noqa: SIM117
        with full_disk_named(tmp_path):
            raise OSError(errno.ENOSPC, "No space left on device", "/dev/full")
    with pytest.raises(FileNotFoundError), full_disk_named(tmp_path):
        (tmp_path / "nothing").read_bytes()


def test_the_log_shows_the_last_lines_of_the_last_attempt(tmp_path: Path) -> None:
    assert read_log_tail(tmp_path) == ""
    lines = "".join(f"line {number}\n" for number in range(30))
    (tmp_path / "log.txt").write_text(
        f"--- attempt, process 1\nold\n--- attempt, process 2\n{lines}"
    )
    assert read_log_tail(tmp_path, lines=2) == "line 28\nline 29"
    assert "old" not in read_log_tail(tmp_path, lines=1000)


def test_a_trainer_works_without_a_process_of_its_own_and_resumes_bit_for_bit(
    tmp_path: Path,
) -> None:
    (spec,) = runs_sgd.make_specs(1)
    whole, halves = Attempt(folder=tmp_path / "whole"), tmp_path / "halves"
    whole.folder.mkdir()
    halves.mkdir()
    summary = runs_sgd.SgdTrainer().train(spec, whole)
    assert summary.tokens == spec.tokens
    stopped = Attempt(folder=halves)
    stopped.ask_to_stop()
    with pytest.raises(Interrupted):
        runs_sgd.SgdTrainer().train(spec, stopped)
    runs_sgd.SgdTrainer().train(spec, Attempt(folder=halves, checkpoint_seconds=0.0))
    assert (halves / METRICS_FILE).read_bytes() == (whole.folder / METRICS_FILE).read_bytes()


def test_a_target_keeps_its_own_unit(tmp_path: Path) -> None:
    attempt = Attempt(folder=tmp_path)
    values = {"web": (3.0, 0.1), "task:web": (0.5, 0.02)}
    attempt.append_metrics(1, 64, values, units={"task:web": "error"})
    (row,) = read_metrics(tmp_path / METRICS_FILE)
    assert (row.unit_of("web"), row.unit_of("task:web")) == ("nats_per_token", "error")


def test_a_row_of_one_unit_is_written_as_before_there_were_several(tmp_path: Path) -> None:
    Attempt(folder=tmp_path).append_metrics(1, 64, {"web": (3.0, None)})
    assert (tmp_path / METRICS_FILE).read_text() == (
        '{"step": 1, "tokens": 64, "values": {"web": [3.0, null]}, "unit": "nats_per_token"}\n'
    )


def test_a_target_whose_unit_changes_is_told(tmp_path: Path) -> None:
    (spec,) = runs_sgd.make_specs(1, steps=3)
    attempt = Attempt(folder=tmp_path)
    for step in spec.eval_steps:
        attempt.append_metrics(
            step, 64 * step, {"web": (0.5, None)}, units={"web": "error"} if step else None
        )
    with pytest.raises(RunError) as error:
        check_metrics(tmp_path, spec)
    assert "'web' is in nats_per_token and, at step 1, in error" in str(error.value)
