"""A stage finishes once, a killed one leaves the same bytes, and two processes never share a run."""

import csv
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charter.errors import InputError
from charter.records import EvalResult, Judgment
from charter.run.files import json_rows, read_json
from charter.run.hashes import derive_seed, file_hash
from charter.run.run import RecordLog, Run
from charter.stages.rl.run import export_rollouts
from charter.votes.judgments import follow, read_judgments
from feedback_folder import tips


def result(number: int) -> EvalResult:
    return EvalResult(name="é\n\u2028", arm=str(number), n=number, n_unscored=0, value=0.1, ci=None, method="", scorer="")


def test_a_stage_is_skipped_where_nothing_changed(tmp_path):
    for expected in (False, True):
        with Run(tmp_path, quiet=True) as run, run.stage("a", {"x": 1}, {"in": "1"}, ["charter.errors"]) as stage:
            assert (stage.done, stage.skipped) == (expected, expected)
            if not stage.done:
                stage.path("out.txt").write_text("made once")
                stage.finish({"figure": 3, "excluded": {"b": 2, "a": 1}})
        assert stage.result == {"figure": 3, "excluded": {"a": 1, "b": 2}}
        assert list(stage.result["excluded"]) == ["a", "b"]  # what is made of it does not depend on who asks
        assert stage.path("out.txt").read_text() == "made once"


@pytest.mark.parametrize(
    ("seed", "settings", "inputs", "code"),
    [(1, {"x": 1}, {"in": "1"}, ["charter.errors"]), (0, {"x": 2}, {"in": "1"}, ["charter.errors"]),
     (0, {"x": 1}, {"in": "2"}, ["charter.errors"]),
     (0, {"x": 1}, {"in": "1"}, ["charter.records"])],
)  # fmt: skip
def test_a_stage_starts_anew_where_anything_changed(tmp_path, seed, settings, inputs, code):
    with Run(tmp_path, quiet=True) as run, run.stage("a", {"x": 1}, {"in": "1"}, ["charter.errors"]) as stage:
        stage.path("old.txt").write_text("")
        stage.finish({})
    with Run(tmp_path, seed=seed, quiet=True) as run, run.stage("a", settings, inputs, code) as stage:
        assert not stage.done
        assert not stage.path("old.txt").exists()


def test_an_unfinished_stage_goes_on_with_what_it_has(tmp_path):
    def once() -> bool:
        with Run(tmp_path, quiet=True) as run, run.stage("a", {}, {}, []) as stage:
            found = stage.path("rows").exists()
            stage.path("rows").write_text("")
            raise KeyboardInterrupt if not found else StopIteration

    with pytest.raises(KeyboardInterrupt):
        once()
    with pytest.raises(StopIteration):
        once()


def test_only_settings_inputs_code_and_seed_make_the_fingerprint(tmp_path):
    with Run(tmp_path / "here", quiet=True) as here, Run(tmp_path / "there", quiet=True) as there:
        one, two = here.stage("a", {"x": 1}, {}, []), there.stage("a", {"x": 1}, {}, [])
        assert one.output_hash == two.output_hash
        assert here.stage("b", {"x": 1}, {}, []).output_hash != one.output_hash


items = list(range(7))


def produce(batch: Sequence[int]) -> Iterator[EvalResult]:
    """Rows that depend on the whole batch, as the numerics of a padded batch do."""
    for item in batch:
        for k in range(2):
            yield result(1000 * sum(batch) + 10 * item + k)


@given(cut=st.integers(0, 2500))
@settings(max_examples=60, deadline=None)
def test_a_log_cut_at_any_byte_ends_with_the_same_bytes(cut):
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole.jsonl", Path(folder) / "killed.jsonl"
        rows = RecordLog(whole, EvalResult).work(items, 3, produce, rows_per_item=2, quiet=True)
        killed.write_bytes(whole.read_bytes()[:cut])
        resumed = RecordLog(killed, EvalResult).work(items, 3, produce, rows_per_item=2, quiet=True)
        assert killed.read_bytes() == whole.read_bytes()
        assert resumed == rows
        assert len(rows) == 14


def judge(batch: Sequence[int]) -> Iterator[Judgment]:
    for item in batch:
        yield Judgment(id=f"{item:02}", set_id="s", prompt_id="p", rater_id="m", rater_kind="judge", order=["a", "b"],
                       ranks={"a": 1, "b": 2}, margin=float(sum(batch)))  # fmt: skip


@given(cut=st.integers(0, 3500))
@settings(max_examples=60, deadline=None)
def test_a_chain_cut_at_any_byte_ends_as_the_same_chain(cut):
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole.jsonl", Path(folder) / "killed.jsonl"
        rows = RecordLog(whole, Judgment).work(items, 3, judge, follow=follow, quiet=True)
        killed.write_bytes(whole.read_bytes()[:cut])
        RecordLog(killed, Judgment).work(items, 3, judge, follow=follow, quiet=True)
        assert killed.read_bytes() == whole.read_bytes()
        assert read_judgments(killed) == rows
        assert tips(rows) == [rows[-1].hash]


def test_a_finished_log_produces_nothing_again(tmp_path):
    RecordLog(tmp_path / "rows.jsonl", EvalResult).work(items, 3, produce, rows_per_item=2, quiet=True)
    asked = []
    log = RecordLog(tmp_path / "rows.jsonl", EvalResult)
    log.work(items[:6], 3, lambda batch: asked.append(batch) or produce(batch), rows_per_item=2, quiet=True)
    assert asked == []


def test_each_row_is_on_disk_before_the_next_is_made(tmp_path):
    path = tmp_path / "rows.jsonl"

    def dying(_: Sequence[int]) -> Iterator[EvalResult]:
        yield result(1)
        yield result(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        RecordLog(path, EvalResult).work([1, 2, 3], 3, dying, quiet=True)
    assert RecordLog(path, EvalResult).count == 2


def test_metrics_come_back_as_recorded_and_are_cut_at_the_checkpoint(tmp_path):
    with Run(tmp_path, quiet=True) as run, run.stage("a", {}, {}, []) as stage:
        assert stage.metrics() == []
        stage.rewind("metrics.jsonl", 3)  # nothing there yet
        for step in range(5):
            stage.record(step, loss=0.5 * step)
        with open(stage.path("metrics.jsonl"), "a") as file:
            file.write('{"step": 5, "lo')
        stage.rewind("metrics.jsonl", 3)
        assert stage.metrics() == [{"step": step, "loss": 0.5 * step} for step in range(3)]
        stage.record(3, loss=9.0)
        assert stage.metrics()[-1] == {"step": 3, "loss": 9.0}


def test_a_text_with_the_line_ends_of_unicode_stays_in_one_row(tmp_path):
    rows = [{"step": step, "prompt": "?", "response": f"one\u2028two\x85three\x0b{step}", "reward": 0.5, "kl": 0.0}
            for step in range(4)]  # fmt: skip
    with Run(tmp_path / "run", seed=0, quiet=True) as run, run.stage("rl", {}, {}, []) as stage:
        log = stage.path("rollouts.jsonl")
        log.write_bytes("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode() + b'{"step": 1, "\xe2\x80')
        stage.rewind("rollouts.jsonl", 3)
        assert json_rows(log) == rows[:3]
        export_rollouts(stage, tmp_path / "rl_log.csv")
    with open(tmp_path / "rl_log.csv", encoding="utf-8", newline="") as file:
        assert [row[2] for row in csv.reader(file)] == ["response", *(row["response"] for row in rows[:3])]


def test_a_second_process_is_told_to_wait(tmp_path):
    code = "import sys; from pathlib import Path; from charter.run.run import Run; Run(Path(sys.argv[1]), quiet=True)"
    command = [sys.executable, "-c", code, str(tmp_path)]
    with Run(tmp_path, quiet=True):
        found = subprocess.run(command, capture_output=True, text=True)
        assert found.returncode == 1
        assert "another process is working in this run folder" in found.stderr
        with pytest.raises(InputError, match="another process"):
            Run(tmp_path)
    assert subprocess.run(command, capture_output=True).returncode == 0


def test_seeds_are_the_same_on_every_machine():
    # printf '0\\037sample\\0377' | sha256sum, the first 8 bytes without the last bit
    assert derive_seed(0, "sample", 7) == 5043583957615078934
    assert derive_seed(0, "sample", 7) != derive_seed(0, "sample7")
    assert all(0 <= derive_seed(n) < 2**63 for n in range(100))
    assert len({derive_seed(n) for n in range(100)}) == 100


def test_a_folder_is_its_files_and_their_names(tmp_path):
    (tmp_path / "a").write_text("1")
    first = file_hash(tmp_path)
    (tmp_path / ".hidden").write_text("x")
    assert file_hash(tmp_path) == first
    (tmp_path / "a").rename(tmp_path / "b")
    assert file_hash(tmp_path) != first
    (tmp_path / "b").rename(tmp_path / "a")
    assert file_hash(tmp_path) == first
    (tmp_path / "a").write_text("2")
    assert file_hash(tmp_path) != first


def test_json_that_is_absent_is_none_and_broken_json_is_said(tmp_path):
    assert read_json(tmp_path / "none.json") is None
    (tmp_path / "a.json").write_text(json.dumps({"a": 1}))
    assert read_json(tmp_path / "a.json") == {"a": 1}
    (tmp_path / "a.json").write_text('{"a": ')
    with pytest.raises(InputError, match="not valid JSON"):
        read_json(tmp_path / "a.json")
