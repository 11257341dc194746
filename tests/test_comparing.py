"""charter compare: files of other tools read as those tools count them, hand-computed figures, and rules of the words."""

from __future__ import annotations

import json
import math
import zipfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import charter
from charter.commands.app import run_command
from charter.comparing.compare import compare_files
from charter.comparing.paired import benjamini_hochberg, corrected, pair
from charter.comparing.sources import read_results
from charter.effects import equivalent, minimum_detectable
from charter.errors import InputError
from charter.evaluation.arms import ScoredResponse
from charter.run.files import write_json, write_jsonl
from charter.statistics import design_effect, holm

LOGS = Path(__file__).parent / "data" / "results"


def write_rows(path: Path, scores, **columns) -> Path:
    """Plain results: q0, q1, … with their scores and further columns."""
    rows = [
        {"id": f"q{i}", "score": score} | {name: column[i] for name, column in columns.items()} for i, score in enumerate(scores)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def table(both: int, only_a: int, only_b: int, neither: int) -> tuple[list[int], list[int]]:
    """Scores 0 and 1 of two models with these counts."""
    a = [1] * both + [1] * only_a + [0] * only_b + [0] * neither
    return a, [1] * both + [0] * only_a + [1] * only_b + [0] * neither


def two_files(folder: Path, a, b, **columns) -> tuple[Path, Path]:
    return write_rows(folder / "a.jsonl", a, **columns), write_rows(folder / "b.jsonl", b, **columns)


def only(comparison):
    (contrast,) = comparison.contrasts
    return contrast


def printed(capsys, *arguments: object) -> dict:
    """The JSON that the command prints."""
    assert run_command(["compare", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


# Files of other tools


@pytest.mark.parametrize("form", ["eval", "json"])
def test_logs_of_inspect_ai_have_the_figures_of_inspect_ai(form):
    old, new = (read_results(str(LOGS / f"inspect-{name}.{form}")) for name in ("old", "new"))
    assert (old.kind, old.model, len(old.keys), len(new.keys)) == ("inspect-ai log", "mockllm/old", 16, 16)
    assert np.mean(old.metrics["match"]) == 0.6875  # accuracy in the log
    assert np.mean(old.metrics["rubric.tone"]) == 2.53125
    assert np.mean(old.metrics["rubric.safe"]) == 0.75
    by_sample = {id: [v for (i, _), v in zip(new.keys, new.metrics["match"], strict=True) if i == id and v is not None]
                 for id, _ in new.keys}  # fmt: skip
    assert np.mean([np.mean(values) for values in by_sample.values()]) == 0.8125  # the log's mean over epochs, then samples
    assert [key for key, value in zip(new.keys, new.metrics["match"], strict=True) if value is None] == [("q8", 2)]


def test_less_of_an_error_rate_is_better_in_a_log_of_inspect_ai_too(tmp_path):
    for number, name in enumerate("ab"):
        scores = [{"wer": {"value": number / 10 + (i % 3) / 100}, "speech": {"value": {"cer": 0.2, "m": 1}}} for i in range(20)]
        samples = [{"id": i, "epoch": 1, "scores": values} for i, values in enumerate(scores)]
        (tmp_path / f"{name}.json").write_text(inspect_json(samples=samples, eval={"task": "t", "model": name}))
    comparison = compare_files([tmp_path / "a.json", tmp_path / "b.json"])
    assert {c.name: c.better for c in comparison.contrasts} == {"speech.cer": "lower", "speech.m": "higher", "wer": "lower"}
    assert next(c.verdict for c in comparison.contrasts if c.name == "wer") == "worse"


def test_both_forms_of_a_log_compare_alike():
    results = []
    for form in ("eval", "json"):
        comparison = compare_files([LOGS / f"inspect-{name}.{form}" for name in ("old", "new")])
        results.append(
            {c.name: (c.n, c.n_unscored, c.difference, c.ci, c.p, c.discordant, c.n_clusters) for c in comparison.contrasts}
        )
        match = next(c for c in comparison.contrasts if c.name == "match")
        assert (match.a, match.b, match.n, match.unscored) == ("mockllm/old", "mockllm/new", 15, ["q8#2"])
        assert match.flips == {"only_a": ["q1#2", "q7#2"], "only_b": ["q3", "q2#2", "q5#2"]} or form == "json"
    assert results[0] == results[1]


def test_a_log_of_a_run_that_crashed_is_read_up_to_there(tmp_path):
    with zipfile.ZipFile(tmp_path / "crashed.eval", "w") as archive:
        archive.writestr("_journal/start.json", json.dumps({"eval": {"task": "t", "model": "m"}, "status": "started"}))
        for part in (1, 2):
            sample = {"id": part, "epoch": 1, "input": "?", "scores": {"match": {"value": "CI"[part - 1]}}}
            archive.writestr(f"_journal/summaries/{part}.json", json.dumps([sample]))
    results = read_results(str(tmp_path / "crashed.eval"))
    assert results.metrics == {"match": [1.0, 0.0]}
    assert results.notes == ["the log's status is started, with 2 samples"]


def test_messages_of_a_sample_are_compared_by_their_words(tmp_path):
    for name, image in (("a", {"type": "image", "image": "data:…"}), ("b", {"type": "text", "text": "(Image)"})):
        message = {"id": f"message-{name}", "role": "user", "content": [{"type": "text", "text": "What is this?"}, image]}
        samples = [{"id": 1, "epoch": 1, "input": [message], "scores": {"match": {"value": name == "a"}}}]
        (tmp_path / f"{name}.json").write_text(inspect_json(samples=samples))
    assert only(compare_files([tmp_path / "a.json", tmp_path / "b.json"])).discordant == (1, 0)


def test_samples_of_lm_eval_have_the_figures_of_lm_eval():
    old, new = (read_results(str(LOGS / f"lm-eval-{name}.jsonl")) for name in ("old", "new"))
    assert old.kind == "lm-evaluation-harness samples"
    figures = [[round(float(np.mean(r.metrics[name])), 4) for name in ("acc", "acc_norm")] for r in (old, new)]
    assert figures == [[0.4167, 0.3333], [0.3333, 0.25]]  # the table that lm_eval printed
    comparison = compare_files([LOGS / "lm-eval-old.jsonl", LOGS / "lm-eval-new.jsonl"], cluster="doc.passage")
    assert [(c.name, c.n, c.n_clusters) for c in comparison.contrasts] == [("acc", 24, 7), ("acc_norm", 24, 7)]


def test_a_folder_of_lm_eval_is_all_its_tasks(tmp_path):
    for model in ("x", "y"):
        for task in ("arc", "piqa"):
            file = tmp_path / model / "vendor__model" / f"samples_{task}_2026-11-28T11-55-06.174277.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            rows = [{"doc_id": i, "doc": {"q": i}, "filter": f, "metrics": ["exact_match"], "exact_match": float(i % 2)}
                    for f in ("strict", "flexible") for i in range(4)]  # fmt: skip
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    comparison = compare_files([tmp_path / "x", tmp_path / "y"])
    assert [(c.name, c.n) for c in comparison.contrasts] == [
        ("arc/exact_match,strict", 4), ("arc/exact_match,flexible", 4), ("piqa/exact_match,strict", 4),
        ("piqa/exact_match,flexible", 4),
    ]  # fmt: skip
    assert (comparison.contrasts[0].a, comparison.contrasts[0].b) == ("x", "y")


def test_a_file_of_an_older_lm_eval_without_hashes_has_the_same_questions(tmp_path):
    rows = [json.loads(line) for line in (LOGS / "lm-eval-old.jsonl").read_text().splitlines()]
    (tmp_path / "older.jsonl").write_text("".join(json.dumps({k: v for k, v in row.items() if k != "doc_hash"}) + "\n"
                                                  for row in rows))  # fmt: skip
    contrasts = compare_files([tmp_path / "older.jsonl", LOGS / "lm-eval-new.jsonl"]).contrasts
    assert [c.n_missing for c in contrasts] == [0] * len(contrasts)


def test_a_metric_of_charter_keeps_its_direction_in_a_file_of_another_form(tmp_path):
    files = two_files(tmp_path, [1] * 20, [0] * 20, harmful_compliance=[1] * 20, response_tokens=range(20))
    write_rows(files[1], [0] * 20, harmful_compliance=[0] * 20, response_tokens=range(20))
    contrasts = {c.name: (c.better, c.verdict) for c in compare_files(files).contrasts}
    assert contrasts == {"score": ("higher", "worse"), "harmful_compliance": ("lower", "better"),
                         "response_tokens": (None, "no evidence")}  # fmt: skip


@pytest.mark.parametrize("name", ["toxicity", "pct_stereotype", "likelihood_diff", "error_rate", "task/harmful_compliance"])
def test_less_of_what_nobody_wants_is_better(tmp_path, name):
    files = two_files(tmp_path, [1] * 20, [0] * 20, **{name: [1] * 20})
    write_rows(files[1], [0] * 20, **{name: [0] * 20})
    assert {c.name: c.verdict for c in compare_files(files).contrasts} == {"score": "worse", name: "better"}


def test_a_direction_that_is_no_direction_is_refused(tmp_path):
    row = ScoredResponse(prompt_id="p", response_id="r", index=0, tags=(), principle=None, harmful=None, refusal=None,
                         helpful=None, helpfulness_level=None, values={"warmth": 1.0})  # fmt: skip
    write_jsonl(tmp_path / "evaluate" / "verdicts.base.jsonl", [row])
    for better in (5, {"warmth": "up"}):
        write_json(tmp_path / "report.json", {"better": better})
        with pytest.raises(InputError, match="field 'better': must be lower or higher"):
            read_results(str(tmp_path))


def test_a_folder_of_lm_eval_keeps_the_dots_of_its_models_name(tmp_path):
    for name in ("Llama-3.1-8B", "Qwen2.5-7B"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "samples_arc_2026-01-01T00-00-00.000000.jsonl").write_text(LM)
    contrast = only(compare_files([tmp_path / "Llama-3.1-8B", tmp_path / "Qwen2.5-7B"]))
    assert (contrast.a, contrast.b) == ("Llama-3.1-8B", "Qwen2.5-7B")


def test_both_versions_of_rewardbench(tmp_path):
    for name, results in (("a", [1, 0, 1, 0.5]), ("b", [1, 1, 1, 1])):
        columns = {"id": [7, 8, 7, 9], "subset": ["chat", "chat", "math", "math"], "results": results, "model": f"rm-{name}",
                   "text_chosen": ["x"] * 4}  # fmt: skip
        (tmp_path / f"{name}.json").write_text(json.dumps(columns, indent=4))
        rows = [{"id": str(i), "subset": "Ties", "prompt": "p", "num_correct": 1, "scores": [[1.0, 2.0]], "results": r}
                for i, r in enumerate(results)]  # fmt: skip
        (tmp_path / f"{name}2.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first = only(compare_files([tmp_path / "a.json", tmp_path / "b.json"]))
    second = only(compare_files([tmp_path / "a2.jsonl", tmp_path / "b2.jsonl"]))
    assert (first.a, first.b, first.name, first.n, first.difference) == ("rm-a", "rm-b", "accuracy", 4, 0.375)
    assert (second.n, second.difference) == (4, 0.375)


def test_the_scores_that_rewardbench_saves_for_every_pair(tmp_path):
    for name, margin in (("a", -1), ("b", 1)):
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps({"chosen": margin * i, "rejected": 1.0}) + "\n" for i in range(4))
        )
    contrast = only(compare_files([tmp_path / "a.jsonl", tmp_path / "b.jsonl"]))
    assert (contrast.value_a, contrast.value_b, contrast.flips["only_b"]) == (0.0, 0.5, ["3", "4"])


def test_annotations_of_alpaca_eval(tmp_path):
    for name, preferences in (("a", [1.0, 1.5, 2.0, None]), ("b", [2.0, 1.75, 2.0, 1.0])):
        rows = [{"instruction": f"do {i}", "output_1": "x", "output_2": "y", "generator_1": "gpt4", "preference": p,
                 "generator_2": f"model-{name}"} for i, p in enumerate(preferences)]  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "annotations.json").write_text(json.dumps(rows))
    contrast = only(compare_files([tmp_path / "a/annotations.json", tmp_path / "b/annotations.json"]))
    assert (contrast.name, contrast.a, contrast.n, contrast.n_unscored) == ("win against gpt4", "model-a", 3, 1)
    assert contrast.difference == pytest.approx((1 + 0.25 + 0) / 3)


def test_arms_of_a_run(tmp_path):
    for arm, harmful in (("base", [True, True, True, False]), ("policy", [False, True, False, False])):
        rows = [
            ScoredResponse(prompt_id=f"p{i // 2}", response_id=f"{arm}{i}", index=i % 2, tags=("red_team",), principle=None,
                           harmful=h, refusal=None, helpful=None, helpfulness_level=None,
                           values={"harmful_compliance": h, "kl": 1.0, "entropy": 2.0,
                                   "response_tokens": 10 + i, "warmth": 0.1 * i})
            for i, h in enumerate(harmful)
        ]  # fmt: skip
        write_jsonl(tmp_path / "demo/evaluate" / f"verdicts.{arm}.jsonl", rows)
    write_json(tmp_path / "demo/report.json", {"better": {"warmth": "lower"}})
    comparison = compare_files([f"{tmp_path}/demo:base", f"{tmp_path}/demo"])
    assert [(c.name, c.better) for c in comparison.contrasts] == [("harmful_compliance", "lower"), ("response_tokens", None),
                                                                  ("warmth", "lower")]  # fmt: skip
    harm = comparison.contrasts[0]
    assert (harm.a, harm.b, harm.n, harm.n_clusters, harm.difference) == ("demo:base", "demo:policy", 4, 2, -0.5)
    assert {"file": "demo:base", "what": "kl: already a comparison with a model of its run"} in comparison.left_out
    assert {"file": "demo:base", "what": "entropy: reported for each arm, not compared"} in comparison.left_out
    with pytest.raises(InputError, match=r"unknown arm 'sft'; use one of base, policy"):
        read_results(f"{tmp_path}/demo:sft")


def test_plain_rows_in_any_table_are_the_same(tmp_path):
    rows = [{"id": 1, "score": 0.5, "words": 3, "note": "x"}, {"id": 2, "score": None, "words": 4, "note": "y"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "rows.csv").write_text("id,score,words,note\n1,0.5,3,x\n2,NA,4,y\n")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    read = [read_results(str(tmp_path / f"rows.{form}")) for form in ("jsonl", "json", "csv", "parquet")]
    assert all(r.metrics == {"score": [0.5, None], "words": [3.0, 4.0]} for r in read)
    assert all(r.keys == [("1", 1), ("2", 1)] and r.notes == ["note: a column without numbers"] for r in read)


# Known figures


def hand_newcombe(both: int, only_a: int, only_b: int, neither: int) -> tuple[float, float]:
    """Newcombe's method 10, written out from the paper's formulas."""
    n, z = both + only_a + only_b + neither, 1.959963984540054

    def wilson(k):
        centre, half = k + z * z / 2, z * math.sqrt(k * (n - k) / n + z * z / 4)
        return (centre - half) / (n + z * z), (centre + half) / (n + z * z)

    p1, p2 = (both + only_a) / n, (both + only_b) / n
    (l1, u1), (l2, u2) = wilson(both + only_a), wilson(both + only_b)
    ad_bc = both * neither - only_a * only_b
    corrected_numerator = max(ad_bc - n / 2, 0) if ad_bc > 0 else ad_bc
    phi = corrected_numerator / math.sqrt((both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither))
    d = p2 - p1
    low = d - math.sqrt((p2 - l2) ** 2 - 2 * phi * (p2 - l2) * (u1 - p1) + (u1 - p1) ** 2)
    return low, d + math.sqrt((u2 - p2) ** 2 - 2 * phi * (u2 - p2) * (p1 - l1) + (p1 - l1) ** 2)


@pytest.mark.parametrize("counts", [(40, 63, 3, 144), (20, 123, 2, 105), (0, 5, 9, 6), (68, 12, 30, 110)])
def test_refusals_against_a_hand_computation(tmp_path, counts):
    contrast = only(compare_files(two_files(tmp_path, *table(*counts))))
    _, b, c, _ = counts
    tail = sum(Fraction(math.comb(b + c, k), 2 ** (b + c)) for k in range(min(b, c) + 1))
    assert contrast.discordant == (b, c)
    assert contrast.p == contrast.mcnemar_p == pytest.approx(float(2 * tail), rel=1e-9)
    assert contrast.ci == pytest.approx(hand_newcombe(*counts), abs=1e-9)
    assert contrast.verdict == ("worse" if b > 20 else "better" if c > 20 else "no evidence")


def test_the_pairs_that_an_unpaired_test_misses(tmp_path, capsys):
    """The data of lm-evaluation-harness issue 3831 and its pull request 3868: n = 220, unpaired .080, paired .008."""
    a, b = table(68, 12, 30, 110)
    error = math.sqrt(sum(np.var(side, ddof=1) / 220 for side in (a, b)))
    assert round(2 * stats.norm.sf((np.mean(b) - np.mean(a)) / error), 3) == 0.080
    for name, scores in (("a", a), ("b", b)):
        rows = [
            {"doc_id": i, "doc": {"q": i}, "filter": "none", "metrics": ["acc"], "acc": float(s)} for i, s in enumerate(scores)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (contrast,) = printed(capsys, tmp_path / "a.jsonl", tmp_path / "b.jsonl")["contrasts"]
    assert round(contrast["p"], 3) == 0.008
    assert contrast["verdict"] == "better"


def test_scores_that_are_not_0_or_1_have_the_paired_t_interval(tmp_path):
    a, b = [0.1, 0.5, 0.4, 0.9, 0.3], [0.3, 0.6, 0.4, 1.0, 0.7]
    contrast = only(compare_files(two_files(tmp_path, a, b)))
    test = stats.ttest_rel(b, a)
    assert contrast.p == pytest.approx(test.pvalue)
    assert contrast.ci == pytest.approx(tuple(test.confidence_interval()))
    assert (contrast.discordant, contrast.flips, contrast.mcnemar_p) == (None, None, None)


def test_copies_of_every_item_add_no_certainty(tmp_path):
    once = only(compare_files(two_files(tmp_path, *([0.1, 0.5, 0.4, 0.9], [0.3, 0.6, 0.4, 1.0]))))
    for name in ("a", "b"):
        rows = (tmp_path / f"{name}.jsonl").read_text()
        (tmp_path / f"{name}.jsonl").write_text(rows * 3)
    copied = only(compare_files([tmp_path / "a.jsonl", tmp_path / "b.jsonl"]))
    assert (copied.n, copied.n_clusters) == (12, 4)
    assert (copied.ci, copied.p) == (pytest.approx(once.ci), pytest.approx(once.p))
    assert copied.design_effect == pytest.approx(3 * 11 / (3 * 4 - 3), rel=1e-9)  # three copies; the 11 and 9 are those of n − 1


def test_a_column_named_cluster_joins_items(tmp_path):
    passages = ["p", "p", "q", "q", "r", "r"]
    files = two_files(tmp_path, [0.0, 0.1, 0.4, 0.5, 0.2, 0.3], [0.3, 0.4, 0.4, 0.5, 0.4, 0.5], cluster=passages)
    contrast = only(compare_files(files))
    assert (contrast.n, contrast.n_clusters, contrast.design_effect) == (6, 3, pytest.approx(2.5))
    means = stats.ttest_rel([0.35, 0.45, 0.45], [0.05, 0.45, 0.25])
    assert contrast.p == pytest.approx(means.pvalue)


def test_design_effect_is_one_without_clusters_or_spread():
    assert (
        design_effect([0.1, 0.7, 0.4], None)
        == design_effect([1.0] * 4, list("aabb"))
        == design_effect([1.0, 2.0], list("aa"))
        == 1
    )


def test_the_smallest_detectable_difference_is_found_four_times_in_five():
    rng = np.random.default_rng(0)
    detectable = minimum_detectable(stats.ttest_1samp(rng.normal(size=200), 0).confidence_interval())
    assert detectable == pytest.approx(2.8 / math.sqrt(200), rel=0.1)
    found = sum(stats.ttest_1samp(rng.normal(detectable, 1, 200), 0).pvalue < 0.05 for _ in range(800))
    assert 0.7 <= found / 800 <= 0.9
    assert minimum_detectable(None) is None


def test_benjamini_and_hochberg_adjust_by_rank():
    assert benjamini_hochberg([0.01, None, 0.04, 0.03, 0.5]) == pytest.approx([0.04, None, 0.16 / 3, 0.16 / 3, 0.5])


@given(st.lists(st.floats(0, 1), max_size=12))
def test_no_correction_lowers_p_and_holm_is_the_stricter(ps):
    for p, bh, strict in zip(ps, benjamini_hochberg(ps), holm(ps), strict=True):
        assert p <= bh + 1e-12
        assert bh <= strict + 1e-12
    assert corrected(ps, "none") == ps


# Words


def test_equivalent_needs_a_margin(tmp_path):
    files = two_files(tmp_path, *table(450, 10, 10, 530))
    assert only(compare_files(files)).verdict == "no evidence"
    close = only(compare_files(files, margins={None: 0.02}))
    assert (close.verdict, close.equivalence_level) == ("equivalent", 0.9)
    assert only(compare_files(files, margins={"score": 0.005})).verdict == "no evidence"


def test_a_difference_inside_the_margin_is_equivalent_however_certain(tmp_path):
    files = two_files(tmp_path, *table(4000, 5, 60, 5935))
    assert only(compare_files(files)).verdict == "better"
    assert only(compare_files(files, margins={None: 0.02})).verdict == "equivalent"


def test_equivalence_is_shown_inside_the_margin_only():
    assert equivalent((-0.01, 0.019), 0.02)
    assert not equivalent((-0.01, 0.02), 0.02)
    assert not equivalent(None, 1.0)


def test_less_of_a_metric_can_be_better(tmp_path):
    files = two_files(tmp_path, *table(40, 3, 63, 144))
    assert [only(compare_files(files, lower=lower)).verdict for lower in ([], ["score"])] == ["better", "worse"]


def test_the_family_is_corrected(tmp_path):
    a, b = table(40, 5, 16, 40)  # p = .027
    files = two_files(tmp_path, a, b, second=[0, 1] * 50 + [0], third=[1, 0] * 50 + [1])
    verdicts = {how: [c.verdict for c in compare_files(files, correction=how).contrasts] for how in ("holm", "none")}
    assert verdicts == {"holm": ["no evidence"] * 3, "none": ["better", "no evidence", "no evidence"]}
    first = compare_files(files).contrasts[0]
    assert first.p_corrected == pytest.approx(3 * first.p)


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0, None]), st.sampled_from([0.0, 0.5, 1.0, None])), min_size=1, max_size=30)
)
def test_the_other_way_round_is_the_negative(pairs):
    a, b = [x for x, _ in pairs], [y for _, y in pairs]
    there, back = pair(a, b, None), pair(b, a, None)
    assert (there.n, there.n_unscored, there.p) == (back.n, back.n_unscored, pytest.approx(back.p))
    assert there.n + there.n_unscored == len(pairs)
    if there.ci is not None:
        assert there.difference == pytest.approx(-back.difference)
        assert there.ci == pytest.approx((-back.ci[1], -back.ci[0]))
        assert there.ci[0] - 1e-12 <= there.difference <= there.ci[1] + 1e-12


def test_missing_and_unscored_items_are_counted_and_named(tmp_path):
    a = write_rows(tmp_path / "a.jsonl", [1, 0, None, 1, 1])
    b = write_rows(tmp_path / "b.jsonl", [0, 0, 1, 1, 1, 0, 1])
    contrast = only(compare_files([a, b]))
    assert (contrast.n, contrast.n_missing, contrast.n_unscored) == (4, 2, 1)
    assert (contrast.missing, contrast.unscored) == ({"a": ["q5", "q6"], "b": []}, ["q2"])


def test_ranks_of_models_that_cannot_be_told_apart_overlap(tmp_path):
    best, same = table(100, 3, 4, 93)
    worst = [0] * 200
    files = [write_rows(tmp_path / f"{name}.jsonl", scores) for name, scores in (("x", worst), ("y", best), ("z", same))]
    comparison = compare_files(files)
    assert [(r.model, r.ranks, r.tied_with) for r in comparison.ranks] == [
        ("z", (1, 2), ["y"]),
        ("y", (1, 2), ["z"]),
        ("x", (3, 3), []),
    ]
    assert len(comparison.contrasts) == 3
    assert compare_files(files[:2]).ranks == []


@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize("binary", [True, False])
def test_intervals_cover_at_twelve_items(binary, clustered):
    """benchmarks/coverage.py has the whole table, with 10,000 simulations of each row."""
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(6), 2) if clustered else None
    covered = 0
    for _ in range(400):
        item = rng.normal(size=12) if labels is None else rng.normal(size=6)[labels]
        if binary:
            risk = stats.norm.cdf(item)
            a, b, truth = rng.random(12) < risk, rng.random(12) < risk**2, 1 / 3 - 1 / 2
        else:
            a, b, truth = item + rng.normal(size=12), item + rng.normal(size=12) + 0.5, 0.5
        low, high = pair(a.astype(float).tolist(), b.astype(float).tolist(), None if labels is None else labels.tolist()).ci
        covered += low <= truth <= high
    assert 0.92 <= covered / 400 <= 0.99


# Output


CONTRACT = {
    "name",
    "a",
    "b",
    "n",
    "n_missing",
    "n_unscored",
    "difference",
    "ci",
    "p",
    "p_corrected",
    "discordant",
    "method",
    "verdict",
}


def test_the_contract_for_scripts(tmp_path, capsys):
    files = two_files(tmp_path, *table(40, 63, 3, 144))
    result = printed(capsys, *files)
    (contrast,) = result["contrasts"]
    assert contrast.keys() >= CONTRACT
    assert (contrast["a"], contrast["b"], contrast["verdict"], contrast["discordant"]) == ("a", "b", "worse", [63, 3])
    assert [file["kind"] for file in result["files"]] == ["plain results", "plain results"]


def test_the_terminal_names_the_flips(tmp_path, capsys):
    assert run_command(["compare", *map(str, two_files(tmp_path, *table(5, 2, 7, 6)))]) == 0
    text = capsys.readouterr().out
    assert "1 only in a: 2 (q5, q6)" in text
    assert "1 only in b: 7 (q7, q8, q9, q10, q11 and 2 more)" in text
    assert "no evidence" in text


def test_csv_and_page(tmp_path):
    a, b = two_files(tmp_path, *table(450, 10, 10, 530))
    out = tmp_path / "out"
    assert (
        run_command(["compare", str(a), str(b), "--margin", "0.02", "--csv", str(out / "t.csv"), "--page", str(out / "p.html")])
        == 0
    )
    header, row = (out / "t.csv").read_text().splitlines()
    assert header.startswith("name,a,b,n,n_missing,n_unscored,value_a,value_b,difference,ci_low,ci_high,p,p_corrected")
    assert row.endswith(",equivalent")
    html = (out / "p.html").read_text()
    assert "Equivalent" in html
    assert "95% interval" in html
    assert "q450" in html
    assert "default-src 'none'" in html
    assert "<script" not in html
    assert "http://" not in html.replace("http://www.w3.org", "")


def test_text_of_files_is_text_on_the_page(tmp_path):
    for name in ("a", "b"):
        rows = [{"id": f"<script>alert({i})</script>", "score": (i + (name == "b")) % 2} for i in range(4)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    compare_files([tmp_path / "a.jsonl", tmp_path / "b.jsonl"]).write_page(tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    assert "&lt;script&gt;alert(0)" in html
    assert "<script" not in html


def test_from_python(tmp_path):
    files = two_files(tmp_path, *table(40, 63, 3, 144))
    comparison = charter.compare(*files, margin={"score": 0.01}, lower=["score"])
    assert only(comparison).verdict == "better"
    assert str(comparison).startswith("metric")
    assert "<table>" in comparison._repr_html_()
    assert [list(rows) for rows in comparison.tables.values()] == [comparison.rows, []]


# What cannot be compared


GOOD = '{"id": 1, "score": 1}\n{"id": 2, "score": 0}\n'
LM = '{"doc_id": 0, "doc": {}, "filter": "none", "metrics": ["acc"], "acc": 1.0}\n'
EVAL_HEADER = json.dumps({"eval": {"task": "t", "model": "m"}, "status": "success"})
INSPECT = {
    "version": 2,
    "status": "success",
    "eval": {"task": "t", "model": "m"},
    "samples": [{"id": 1, "epoch": 1, "scores": {}}],
}


def inspect_json(**changes) -> str:
    return json.dumps(INSPECT | changes)


BAD = {
    "empty.jsonl": ("", "the file is empty"),
    "blank.csv": ("\n\n", "the file is empty"),
    "broken.jsonl": (GOOD + "{nonsense\n", "broken.jsonl, line 3: not valid JSON"),
    "list.jsonl": (GOOD + "[1]\n", "line 3: must be a JSON object, not a list"),
    "no-id.jsonl": ('{"score": 1}\n', "the column 'id' is missing"),
    "null-id.jsonl": (GOOD + '{"id": null, "score": 1}\n', "line 3, field 'id': missing"),
    "list-id.jsonl": (GOOD + '{"id": [1], "score": 1}\n', "line 3, field 'id': must be a text or a number"),
    "words.jsonl": (GOOD + '{"id": 3, "score": "good"}\n', "line 3, field 'score': must be a number, true, false or empty"),
    "infinite.jsonl": (GOOD + '{"id": 3, "score": Infinity}\n', "line 3, field 'score': is infinite"),
    "huge.jsonl": (GOOD + '{"id": 3, "score": 1' + "0" * 400 + "}\n", "line 3, field 'score': is infinite"),
    "unscored.jsonl": ('{"id": 1, "score": null}\n', "no item has a score"),
    "textual.jsonl": ('{"id": 1, "answer": "x"}\n', "no column has a number"),
    "unknown.jsonl": ('{"question": 1, "answer": "x"}\n', "unknown result file (columns: question, answer)"),
    "no-cluster.jsonl": (GOOD + '{"id": 3, "score": 1, "cluster": "x"}\n', "line 1, field 'cluster': missing"),
    "underscore.csv": ("id,score\na,1_2\n", "line 2, field 'score': must be a number"),
    "ragged.csv": ("id,score\n1,1\n2\n", "line 3: has 1 cells where the header has 2"),
    "twice.csv": ("id,score,score\n1,1,1\n", "two columns have the same name"),
    "cell.csv": ("id,score\n1,yes!\n", "line 2, field 'score': must be a number"),
    "latin.csv": (b"id,score\n\xe9,1\n", "line 2: not UTF-8"),
    "other.zip": ("zip:readme.txt=hello", "not a log of inspect-ai"),
    "torn.eval": (b"PK\x03\x04 and then nothing", "broken archive"),
    "header.eval": ("zip:header.json={", "header.json: not valid JSON"),
    "samples.eval": (f"zip:header.json={EVAL_HEADER}", "field 'samples': the log has no samples"),
    "journal.eval": (f"zip:header.json={EVAL_HEADER}|_journal/summaries/1.json=5", "1.json: must be a list of samples"),
    "no-samples.json": (json.dumps({"eval": {}, "plan": {}}), "field 'samples': the log has no samples"),
    "sample.json": (inspect_json(samples=[5]), "sample.json, sample 1: must be an object"),
    "epoch.json": (inspect_json(samples=[{"id": 1, "epoch": "x"}]), "sample 1, field 'epoch': must be a whole number"),
    "same-epoch.json": (inspect_json(samples=[{"id": 1, "epoch": 1, "scores": {"m": 1}}] * 2), "repeat 1 has 2 rows"),
    "scores.json": (inspect_json(samples=[{"id": 1, "scores": [1]}]), "field 'scores': must be an object"),
    "ungraded.json": (inspect_json(samples=[{"id": 1, "scores": {"m": {"value": "banana"}}}]), "all unscored: m"),
    "metrics.jsonl": (LM + LM.replace('["acc"]', '"acc"'), "line 2, field 'metrics': must be a list of names"),
    "metric.jsonl": (LM + LM.replace('"acc": 1.0', '"b": 1'), "line 2, field 'acc': missing, but 'metrics' names it"),
    "doc.jsonl": (LM + LM.replace('"doc_id": 0', '"doc_id": true'), "line 2, field 'doc_id': must be a text or a number"),
    "summary.json": (json.dumps({"results": {}, "configs": {}}, indent=1), "the summary of lm-evaluation-harness"),
    "columns.json": (json.dumps({"id": [1, 2], "results": [1]}), "columns of different lengths"),
    "outputs.json": (json.dumps([{"instruction": "x", "output": "y"}]), "outputs of a model without a judge's preference"),
    "preference.json": (json.dumps([{"instruction": "x", "preference": 3}]), "field 'preference': must be between 1 and 2"),
    "models.json": (json.dumps([{"instruction": "x", "preference": 1, "generator_2": m} for m in "ab"]), "several models (a, b)"),
    "values.jsonl": ('{"prompt_id": "x", "values": 3}\n', "line 1, field 'values': must be an object"),
    "index.jsonl": ('{"prompt_id": "x", "values": {"a": 1}, "index": "0"}\n', "line 1, field 'index': must be a whole number"),
    "kl.jsonl": ('{"prompt_id": "x", "values": {"kl": 1}}\n', "no value that can be compared"),
}  # fmt: skip


def write_bad(path: Path, content: str | bytes) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content.startswith("zip:"):
        with zipfile.ZipFile(path, "w") as archive:
            for part in content[4:].split("|"):
                name, _, text = part.partition("=")
                archive.writestr(name, text)
    else:
        path.write_text(content)


@pytest.mark.parametrize("name", BAD)
def test_a_malformed_file_is_one_line_with_file_and_place(tmp_path, capsys, name):
    content, words = BAD[name]
    write_bad(tmp_path / name, content)
    (tmp_path / "good.jsonl").write_text(GOOD)
    assert run_command(["compare", str(tmp_path / name), str(tmp_path / "good.jsonl")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("charter: ")
    assert captured.err.count("\n") == 1
    assert name in captured.err
    assert words in captured.err


def test_a_torn_member_of_a_log_is_named(tmp_path, capsys):
    raw = bytearray((LOGS / "inspect-old.eval").read_bytes())
    with zipfile.ZipFile(LOGS / "inspect-old.eval") as archive:
        start = archive.getinfo("summaries.json").header_offset
    raw[start + 60 : start + 90] = b"\0" * 30
    (tmp_path / "torn.eval").write_bytes(raw)
    assert run_command(["compare", str(tmp_path / "torn.eval"), str(LOGS / "inspect-new.eval")]) == 2
    assert "torn.eval, summaries.json: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (GOOD, LM, "is plain results and"),
        (inspect_json(samples=[{"id": 1, "scores": {"m": 1}}]), LM, "a.jsonl is an inspect-ai log and"),
        (GOOD, '{"id": 9, "score": 1}\n', "share no item (ids such as '1' and '9')"),
        (GOOD, '{"id": 1, "other": 1}\n', "share no metric"),
        (LM, LM.replace("{}", '{"q": 2}'), "ask different questions under the same id (1 of 1 shared items, such as '0')"),
        (GOOD.replace("}", ', "cluster": 1}'), GOOD.replace("}", ', "cluster": 2}'), "into different clusters, '1' and '2'"),
    ],
)  # fmt: skip
def test_files_that_do_not_belong_together(tmp_path, capsys, a, b, words):
    (tmp_path / "a.jsonl").write_text(a)
    (tmp_path / "b.jsonl").write_text(b)
    assert run_command(["compare", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "a.jsonl" in error
    assert "b.jsonl" in error


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--margin", "x"], "--margin x: not a number above 0"),
        (["--margin", "-1"], "not a number above 0"),
        (["--margin", "0.1", "--margin", "0.2"], "given more than once for all metrics"),
        (["--margin", "acc=0.1"], "unknown metric 'acc'; the files share score"),
        (["--lower", "acc"], "unknown metric 'acc'"),
        (["--correct", "magic"], "unknown correction 'magic'; use one of holm, bh, none"),
        (["--cluster", "doc.passage"], "line 1, field 'doc.passage': missing"),
    ],
)  # fmt: skip
def test_options_that_mean_nothing_are_refused(tmp_path, capsys, options, words):
    files = two_files(tmp_path, [1, 0], [0, 0])
    assert run_command(["compare", *map(str, files), *options]) == 2
    assert words in capsys.readouterr().err


def test_one_file_and_the_same_file_are_refused(tmp_path, capsys):
    a, _ = two_files(tmp_path, [1, 0], [0, 0])
    assert run_command(["compare", str(a)]) == 2
    assert "two or more" in capsys.readouterr().err
    assert run_command(["compare", str(a), str(a)]) == 2
    assert "given more than once" in capsys.readouterr().err
    assert run_command(["compare", str(a), str(tmp_path / "none.jsonl")]) == 2
    assert "no such file or folder" in capsys.readouterr().err
    assert run_command(["compare", str(a), str(tmp_path)]) == 2
    assert "neither a run" in capsys.readouterr().err
