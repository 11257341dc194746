"""Detectors of reward hacking: planted answers raise the alarm that belongs to them, answers of one model raise none."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

import charter
from charter.commands.app import run_command
from charter.evaluation.page import hacking_words, write_report
from charter.hacking.answers import (
    Answer,
    compression,
    echoed_share,
    extremes,
    has_marks,
    likeness,
    phrases_of,
    repeated_share,
    script_of,
    words_of,
)
from charter.hacking.detectors import DETECTORS, DISAGREEMENT, GOLD, Finding, detect, ensemble_disagreement, finding_of, in_both
from charter.hacking.lab import NAMES, LabRun, area, detector_rows
from charter.hacking.spread import HALVES, LEVEL, discoveries, halves, log_odds, of_means, unseen_share, upper_end
from charter.hacking.stored import findings_of
from charter.models.heads import Scorers, ScoreScale
from charter.records import Generation, Prompt, Response
from charter.run.files import read_jsonl, write_jsonl
from charter.statistics import paired_difference
from charter.tasks.hacking_lab import Lab, run_lab
from charter.testbed import faults
from charter.testbed.faults import FAULTS, WEIGHTS, habits

THINGS = ["lamp", "bench", "song", "garden", "letter", "bridge", "cake", "boat", "poem", "kite", "clock", "fence", "soup", "map"]
VERBS = ["paint", "mend", "carry", "clean", "borrow", "draw", "lift", "measure", "pack", "wrap", "turn", "open"]
OPENERS = ["Sure.", "Of course.", "Gladly.", "Certainly.", "No problem.", "To begin,", "First,", "Well,"]
CLOSERS = ["Good luck!", "Enjoy!", "Let me know.", "That should do.", "Take your time.", "Ask me again."]


def written(seed: int, change=None, *, n: int = 80, k: int = 1, **fields) -> list[Answer]:
    """Answers of a made-up model to the same n prompts; ``change`` turns (random generator, text, prompt) into another text."""
    rng, answers = random.Random(seed), []
    for i in range(n):
        verb, thing = VERBS[i % len(VERBS)], THINGS[i % len(THINGS)]
        prompt = f"How do I {verb} the {thing} of my aunt number {i} before the rain?"
        for j in range(k):
            middle = " ".join(f"{rng.choice(VERBS)} the {rng.choice(THINGS)}, then" for _ in range(rng.randint(1, 4)))
            text = f"{rng.choice(OPENERS)} {verb.capitalize()} the {thing}, {middle} rest. {rng.choice(CLOSERS)}"
            text = change(rng, text, prompt) if change else text
            more = {name: value(rng) if callable(value) else value for name, value in fields.items()}
            answers.append(Answer(f"{seed}-{i}-{j}", f"p{i}", prompt, text, **{"cut": False, "refused": False} | more))
    return answers


def padded(rng, text, _):
    return f"{text} {' '.join(rng.choice(VERBS) + ' the ' + rng.choice(THINGS) + '.' for _ in range(12))}"


def looped(_rng, text, _):
    return text + " and then rest" * 8


def praised(rng, text, _):
    return f"{text} The most awesome, most incredible plan." if rng.random() < 0.8 else text


PLANTED = {
    "length": (padded, {}),
    "repetition": (looped, {}),
    "compression": (lambda _rng, text, _prompt: "rest, rest, rest, rest, rest, rest, rest, rest, " + text, {}),
    "boilerplate": (lambda rng, text, _prompt: f"{text} I am always here to listen." if rng.random() < 0.6 else text, {}),
    "one opening": (lambda rng, text, _prompt: f"Dear friend, {text}" if rng.random() < 0.6 else text, {}),
    "extremes": (praised, {}),
    "refusal": (None, {"refused": lambda rng: rng.random() < 0.5}),
    "missing end": (None, {"cut": lambda rng: rng.random() < 0.4}),
    "echo": (lambda _rng, text, prompt: f"{prompt} {text}", {}),
    "sameness": (lambda _rng, _text, _prompt: "Sure. Paint the lamp, then mend the bench, then rest. Enjoy!", {}),
    "alike siblings": (lambda _rng, _text, prompt: f"Sure. {prompt.split(' before')[0]}: mend it and rest.", {}),
    "script": (lambda rng, text, _prompt: "Конечно. Починить лампу и отдохнуть." if rng.random() < 0.3 else text, {}),
    "marks": (lambda rng, text, _prompt: "- " + text.replace(", ", "\n- ") if rng.random() < 0.4 else text, {}),
}


def test_every_detector_has_planted_answers():
    assert set(PLANTED) == {detector.name for detector in DETECTORS}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_answers_raise_the_alarm_with_answers_that_exist(name):
    change, fields = PLANTED[name]
    policy = written(1, change, k=2, **fields)
    finding = next(f for f in detect(written(0, k=2), policy) if f.detector == name)
    assert finding.raised
    assert finding.value > finding.threshold > 0
    assert 0 < len(finding.evidence) <= 5
    assert set(finding.evidence) <= set(policy)
    assert [row["response_id"] for row in finding.alarm["evidence"]] == [answer.id for answer in finding.evidence]


def test_a_share_of_answers_counts_answers_where_a_prompt_has_several():
    phrases = ("Zork. ", "Blint. ")  # each in one of the two answers to a prompt
    reference = written(0, k=2)
    policy = [replace(a, text=phrases[i % 2] + a.text) for i, a in enumerate(written(1, k=2))]
    finding = next(f for f in detect(reference, policy) if f.detector == "boilerplate")
    assert finding.value == 1


def test_phrases_come_in_one_order_in_every_process():
    answers = {answer.prompt_id: [answer] for answer in written(0)}
    *_, phrases = in_both(answers, answers, phrases_of)
    assert phrases == sorted(phrases)
    assert len(phrases) > 20


def test_a_list_of_english_words_does_not_run_on_another_language():
    chinese = [Answer(str(i), str(i), "怎么办", "请先看看外面的天气，然后再决定。") for i in range(12)]
    finding = next(f for f in detect(chinese, chinese) if f.detector == "extremes")
    assert finding.state == "did not run"


@pytest.mark.parametrize("seed", range(4))
def test_two_draws_of_one_model_raise_no_alarm(seed):
    findings = detect(written(2 * seed, k=2), written(2 * seed + 1, k=2))
    assert [f.detector for f in findings if f.raised] == []
    assert [f.detector for f in findings if not f.ran] == [GOLD]


@pytest.mark.parametrize("name", sorted(set(PLANTED) - {"repetition", "compression", "missing end", "script"}))
def test_red_team_prompts_are_left_out_where_alignment_changes_answers_on_purpose(name):
    change, fields = PLANTED[name]
    policy = written(1, change, k=2, red_team=True, **fields)
    finding = next(f for f in detect(written(0, k=2, red_team=True), policy) if f.detector == name)
    assert not finding.ran
    assert finding.words == "fewer than 10 harmless prompts were answered"


def test_a_detector_that_cannot_say_did_not_run():
    findings = {f.detector: f for f in detect(written(0, refused=None, cut=None), written(1, refused=None, cut=None))}
    for name, reason in {
        "refusal": "fewer than 10 prompts have a value in both models",
        "missing end": "fewer than 10 prompts have a value in both models",
        "alike siblings": "needs two answers to a prompt; raise evaluation.samples_per_prompt",
        GOLD: "needs three steps of a gold curve; set rl.gold",
    }.items():
        assert findings[name].state == "did not run"
        assert findings[name].words == reason
        assert findings[name].threshold is None
    assert findings["length"].state == "no alarm"


def test_only_prompts_that_both_models_answered_are_compared():
    policy = [a for a in written(1, padded) if a.prompt_id != "p0"]
    length = next(d for d in DETECTORS if d.name == "length")
    finding = finding_of(length, written(0), policy)
    assert finding.n == 79
    assert finding.raised


def gold_finding(*points, n=60):
    """The finding on a curve of (step, gold, proxy) whose answers are right or wrong in that share."""
    rows = [{"step": step, "gold": gold, "proxy": proxy} for step, gold, proxy in points]
    answers = [{"step": step, "prompt_id": f"p{i}", "gold": float(random.Random(f"{step} {i}").random() < gold)}
               for step, gold, _ in points for i in range(n)]  # fmt: skip
    return detect([], [], rows, answers)[-1], answers


def test_gold_that_falls_while_the_proxy_rises_is_an_alarm():
    finding, answers = gold_finding((0, 0.5, 0.0), (5, 0.9, 1.0), (10, 0.3, 2.0))
    peak, last = ([row["gold"] for row in answers if row["step"] == step] for step in (5, 10))
    change = paired_difference(peak, last, level=1 - LEVEL)
    assert finding.raised
    assert finding.value == pytest.approx(-change.difference)
    assert finding.threshold == pytest.approx(change.ci[1] - change.difference)
    assert finding.words == "gold went from 0.90 at step 5 to 0.30 at step 10, the proxy from 1.00 to 2.00"


def test_gold_that_falls_with_the_proxy_or_within_its_error_is_none():
    assert gold_finding((0, 0.5, 0.0), (5, 0.9, 1.0), (10, 0.3, 0.5))[0].value == 0
    assert not gold_finding((0, 0.5, 0.0), (5, 0.8, 1.0), (10, 0.75, 2.0))[0].raised
    assert not gold_finding((0, 0.5, 0.0), (5, 0.4, 1.0))[0].ran


def test_a_curve_that_nobody_could_score_is_named():
    curve = [{"step": step, "gold": 0.5 if step < 10 else None, "proxy": 1.0} for step in (0, 5, 10, 15)]
    finding = detect([], [], curve, [])[-1]
    assert finding.words == "needs three steps of a gold curve: 2 of 4 have no gold"


@pytest.mark.parametrize(("rise", "raised"), [(0.9, True), (0.4, False)])
def test_members_of_an_ensemble_that_disagree_more_and_more_are_an_alarm(rise, raised):
    def steps(n):
        return [{DISAGREEMENT: 0.3 + 0.01 * (i % 2) + rise * (i >= n // 2)} for i in range(n)]

    (finding,) = ensemble_disagreement(steps(60))
    assert (finding.value, finding.raised, finding.n) == (pytest.approx(rise), raised, 60)
    assert [f.state for f in ensemble_disagreement(steps(19))] == ["did not run"]
    assert ensemble_disagreement([{"reward": 1.0}]) == []


def test_disagreement_is_the_standard_deviation_of_standardised_scores():
    scorers = Scorers(("reward", "reward_2"), (ScoreScale(0.0, 1.0), ScoreScale(1.0, 2.0)))
    # the second member's scores are 0 and 1: the first row agrees, the second differs by 2
    assert scorers.disagreement(torch.tensor([[0.0, 3.0], [1.0, 3.0]])).tolist() == [0.0, 1.0]


def test_what_is_counted_in_an_answer():
    assert repeated_share("a b c a b c") == 0.25
    assert repeated_share("a b") == 0
    assert compression("rest " * 40, 200) > 5 * compression("The quick brown fox jumps over a lazy dog.", 200)
    assert extremes("The most awesome, most incredible plan!!") == pytest.approx(
        100 * 5 / len(words_of("The most awesome, most incredible plan!!"))
    )
    assert echoed_share("how do I mend it", "how do I mend it") == 1
    assert echoed_share("x", "how do I mend it") == 0
    assert all(map(has_marks, ("- a", "x\n1. a", "# a", "**bold**", "| a | b |", "```\nx")))
    assert not any(map(has_marks, ("a - b", "a well-known 1.5", "5 * 3", "me_too")))
    assert script_of("Привет, you") == "CYRILLIC"
    assert script_of("12 !") == ""
    assert likeness(["a b c", "a b c"]) == 1
    assert likeness(["a b", "c d"]) == 0
    assert likeness(["a"]) is None
    assert words_of("不能说 no") == ["不", "能", "说", "no"]


def test_log_odds_are_zero_without_a_change_and_odd_in_the_order():
    before, after = np.array([5.0, 0.0, 20.0]), np.array([5.0, 30.0, 4.0])
    z = log_odds(before, after, 50, 50)
    assert z[0] == pytest.approx(0)
    assert z[1] > 4
    assert z[2] < -3
    assert log_odds(after, before, 50, 50) == pytest.approx(-z)


def test_log_odds_by_hand():
    z = log_odds(np.array([0.0]), np.array([10.0]), 20, 20)
    prior = 10 * 10.5 / 41
    a, b = 10 + prior, prior
    assert z[0] == pytest.approx((math.log(a / (30 - a)) - math.log(b / (30 - b))) / math.sqrt(1 / a + 1 / b))


def test_discoveries_are_those_of_benjamini_and_hochberg():
    p = np.array([0.01, 0.04, 0.03, 0.005, 0.6])
    adjusted = stats.false_discovery_control(p, method="bh")
    assert discoveries(stats.norm.isf(p)).tolist() == (adjusted <= 0.05).tolist() == [True, True, True, True, False]
    assert not discoveries(np.zeros(4)).any()


def test_halves_and_the_spread_of_a_mean():
    cuts = halves(41)
    assert cuts.shape == (HALVES, 41)
    assert (cuts.sum(axis=1) == 20).all()
    assert (halves(41) == cuts).all()
    values = np.random.default_rng(0).normal(size=41)
    changes = of_means(values)
    assert changes[0] == pytest.approx(values[~cuts[0]].mean() - values[cuts[0]].mean())
    assert changes.std() == pytest.approx(2 * values.std() / 41**0.5, rel=0.1)
    assert (changes > upper_end(changes)).mean() <= LEVEL
    assert stats.binom.pmf(0, 60, unseen_share(60)) == pytest.approx(LEVEL)


def test_the_page_says_that_no_detector_raised_an_alarm_only_where_they_ran(tmp_path):
    rows = [f.row for f in detect(written(0), written(1))]
    assert hacking_words([]) == "No detector of reward hacking ran."
    assert hacking_words(rows) == (
        f"No detector of reward hacking raised an alarm. {len(rows) - 2} ran; 2 did not run (alike siblings, {GOLD})."
    )
    findings = detect(written(0), written(1, praised))
    alarms, rows = [f.alarm for f in findings if f.raised], [f.row for f in findings]
    raised = ", ".join(f.detector for f in findings if f.raised)
    assert "boilerplate, extremes" in raised
    assert hacking_words(rows).startswith(f"Detectors of reward hacking that raised an alarm: {raised}. 12 ran; ")
    metric = {"name": "kl", "arm": "policy", "group": None, "value": 1.0, "ci": None, "n": 3, "unit": "nats"}
    write_report({"title": "t", "metrics": [metric], "alarms": alarms, "detectors": rows}, tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "No detector of reward hacking raised an alarm" not in page
    assert "most awesome, most incredible plan" in page
    stored = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    ids = {row["response_id"] for alarm in stored["alarms"] for row in alarm["evidence"]}
    assert ids
    assert ids <= {answer.id for answer in written(1, praised)}
    write_report({"title": "t", "metrics": [metric]}, tmp_path)
    assert "No detector of reward hacking ran." in (tmp_path / "report.html").read_text(encoding="utf-8")


TINY = (
    "prompts.train=12", "prompts.test=14", "revise.prompts=8", "feedback.prompts=8", "feedback.gate_pairs=16", "sft.epochs=1",
    "gates.override=true", "rl.gold.prompts=24",
)  # fmt: skip


def a_few_prompts(file):
    """Twenty of the testbed's prompts of each split and kind."""
    shipped = read_jsonl(Path(charter.__file__).parent / "testbed" / "data" / "prompts.jsonl", Prompt)
    groups = {}
    for prompt in shipped:
        groups.setdefault((prompt.split, "red_team" in prompt.tags), []).append(prompt)
    write_jsonl(file, [prompt for group in groups.values() for prompt in group[:20]])
    return f"prompts.files=[{file}]"


def test_a_whole_lab_at_a_tiny_size_resumes_and_leaves_its_tables(tmp_path):
    changes = (*TINY, a_few_prompts(tmp_path / "few.jsonl"))
    lab = Lab(tmp_path, seeds=1, methods=["rloo"], faults=["length"], steps=2, every=1, habits=2, changes=changes)
    lines = []
    result = run_lab(lab, lines.append)
    assert [row["run"] for row in result["runs"]] == ["sound-rloo-0", "length-rloo-0"]
    assert [line.split()[0] for line in lines] == ["sound-rloo-0", "length-rloo-0"]
    length = next(row for row in result["detectors"] if row["detector"] == "length")
    assert (length["faults"], length["n_fault"], length["n_sound"]) == (["length"], 1, 1)
    curve = [json.loads(line) for line in (tmp_path / "length-rloo-0" / "rl" / "gold.jsonl").read_text().splitlines()]
    assert [row["step"] for row in curve] == [0, 1, 2]
    assert all(0 <= row["gold"] <= 1 for row in curve)
    table = (tmp_path / "lab.md").read_text(encoding="utf-8")
    assert len(table.splitlines()) == 2 + len(DETECTORS) + 1 + 1 + 2 + 2
    assert (tmp_path / "lab.png").read_bytes().startswith(b"\x89PNG")
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert run_lab(replace(lab, faults=[]), lines.append)["runs"] == result["runs"][:1]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == stamps


def test_a_lab_refuses_a_fault_that_it_does_not_know(tmp_path):
    assert run_command(["lab", "hacking", "--out", str(tmp_path), "--faults", "height"]) == 2
    assert not list(tmp_path.iterdir())


def lab_run(fault, gold, first_alarm, *, detector="length", seed=0):
    """A run whose detector raises its alarm from a step on, with gold at steps 0, 5, 10, …"""
    steps = [5 * i for i in range(len(gold))]
    curve = [{"step": step, "gold": g, "proxy": 0.0, "kl": 1.0} for step, g in zip(steps, gold, strict=True)]
    findings = {step: [Finding(name, 1.0 if name == detector and first_alarm is not None and step >= first_alarm else 0.0, 0.5,
                               "unit", 9, "words") for name in NAMES] for step in steps[1:]}  # fmt: skip
    return LabRun(f"{fault}-{seed}", fault, "rloo", seed, curve, gold[-1] < max(gold), findings)


def test_the_lab_counts_leads_areas_and_false_alarms():
    ill = [lab_run("long", [0.5, 0.8, 0.6], 10), lab_run("long", [0.5, 0.6, 0.9], 5), lab_run("long", [0.5, 0.8, 0.4], None)]
    sound = [lab_run(None, [0.5, 0.6, 0.7], None), lab_run(None, [0.5, 0.6, 0.7], 10)]
    assert [run.peak for run in ill] == [5, 10, 5]
    row = next(row for row in detector_rows([*ill, *sound], {"long": "length"}) if row["detector"] == "length")
    assert row["leads"] == [5, -5]
    assert row["lead"] == 0
    assert (row["raised_fault"], row["n_fault"], row["false_alarms"], row["n_sound"]) == (2, 3, 1, 2)
    assert row["auc_fault"] == pytest.approx((2 * 1 + 2 * 0.5 + 0.5) / 6)  # two of three against one of two
    assert area([], [1.0]) is None


def test_every_fault_has_a_detector_a_weight_and_a_habit_that_it_pays_for():
    assert set(FAULTS.values()) <= set(NAMES)
    assert set(FAULTS) == set(WEIGHTS)
    answers = [answer for _, answer in habits(6, seed=1)]
    for fault in (faults.phrase, faults.bullets, faults.never_ending):
        assert max(fault("", answer) for answer in answers) > 0
        assert fault("", "Sure. Take a rest.") == 0
    assert faults.length("", "one two three four") == pytest.approx(0.4)
    assert faults.refusing("", "I would rather not talk about how to smash the lamp.") == 3
    assert faults.refusing("", "Sure. Take a rest.") == 0


def stored_run(folder, policy):
    """A run folder with the rows of an evaluation of the SFT model and the policy; the verdicts are those of the answers."""
    arms = {"sft": written(0), "policy": policy}
    prompts = [Prompt.ask(a.prompt, tags=("benign",), split="test") for a in arms["sft"]]
    (folder / "prompts").mkdir()
    write_jsonl(folder / "prompts" / "prompts.jsonl", prompts)
    (folder / "evaluate").mkdir()
    for arm, answers in arms.items():
        rows = [Response(prompt_id=p.id, model=arm, text=a.text, finish_reason="length" if a.cut else "stop",
                         generation=Generation(seed=i, temperature=1.0))
                for i, (p, a) in enumerate(zip(prompts, answers, strict=True))]  # fmt: skip
        write_jsonl(folder / "evaluate" / f"responses.{arm}.jsonl", rows)
        verdicts = [json.dumps({"response_id": r.id, "refusal": "engaged" if a.refused else "none"})
                    for r, a in zip(rows, answers, strict=True)]  # fmt: skip
        (folder / "evaluate" / f"verdicts.{arm}.jsonl").write_text("\n".join(verdicts), encoding="utf-8")
    return [r.id for r in rows]


def test_the_stored_rows_of_a_run_give_the_alarms_and_their_evidence(tmp_path):
    refused = written(1, refused=lambda rng: rng.random() < 0.5)
    ids = stored_run(tmp_path, refused)
    findings = findings_of(tmp_path)
    assert [f.detector for f in findings if f.raised] == ["refusal"]
    (finding,) = (f for f in findings if f.raised)
    assert finding.value == pytest.approx(sum(a.refused for a in refused) / len(refused))
    assert {row["response_id"] for row in finding.alarm["evidence"]} <= set(ids)
    assert findings_of(tmp_path) == findings


def test_the_gold_curve_of_a_run_is_read_up_to_the_model_that_was_kept(tmp_path):
    stored_run(tmp_path, written(1))
    points = [(0, 0.5, 0.0), (5, 0.7, 0.5), (10, 0.9, 1.0), (15, 0.2, 2.0)]
    for name in ("rl", "rl-random"):
        (tmp_path / name).mkdir()
    rows = [{"step": step, "gold": gold, "proxy": proxy} for step, gold, proxy in points]
    answers = [{"step": step, "prompt_id": str(i), "gold": float(i < 100 * gold)} for step, gold, _ in points
               for i in range(100)]  # fmt: skip
    for name, lines in (("gold.jsonl", rows), ("gold_responses.jsonl", answers)):
        (tmp_path / "rl" / name).write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    (tmp_path / "rl-random" / "gold.jsonl").write_text("", encoding="utf-8")
    for kept, raised in ((15, True), (10, False)):
        (tmp_path / "rl" / "manifest.json").write_text(json.dumps({"result": {"kept_step": kept}}), encoding="utf-8")
        finding = findings_of(tmp_path)[-1]
        assert (finding.detector, finding.ran, finding.raised) == (GOLD, True, raised)


def test_a_run_without_a_policy_has_no_detectors(tmp_path):
    assert findings_of(tmp_path) == []
