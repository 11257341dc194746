"""A judge applies the higher principle first and names the one that decided; principles are measured on labelled pairs."""

import json
import math
from collections import Counter
from pathlib import Path

import pytest
import yaml

from charter.commands.app import run_command
from charter.constitution.check import check
from charter.constitution.constitution import Constitution, Principle, by_rank, draw
from charter.judging.judge import Comparison, Preference, comparisons_of, pairs_of
from charter.judging.principles import measure_principles
from charter.judging.priorities import cases_of, earlier_ruling, labelled_case, margin_noise, measure_rule, rule, ruled
from charter.pipeline import run_recipe
from charter.recipe.files import load_recipe
from charter.records import Generation, Judgment, Pair, Prompt, Response
from charter.run.files import read_jsonl
from conftest import CONSTITUTION, write_some_prompts, write_tiny_recipe


def principle(name: str, **fields) -> Principle:
    return Principle(id=name, title=name, preference=f"Which reply is more {name}?", **fields)


SAFE, KIND, BRIEF = principle("safe", authority="root"), principle("kind", authority="user"), principle("brief")
RULES = Constitution(title="ranked", principles=(BRIEF, KIND, SAFE))


def compared(n: int) -> tuple[list[Prompt], list[list[Response]]]:
    prompts = [Prompt.ask(f"Question {i}?") for i in range(n)]
    return prompts, [
        [Response(prompt_id=p.id, model="m", text=text, finish_reason="stop", generation=Generation(seed=0, temperature=1.0))
         for text in (f"one {i}", f"two {i}")] for i, p in enumerate(prompts)
    ]  # fmt: skip


def by_margins(margins: dict[str, float | list[float]]):
    """A planted judge: the margin under each principle, of each question or of all. Remembers whom it was asked about."""
    asked: list[str] = []

    def judge(comparisons):
        asked.extend(c.principle.id for c in comparisons)
        values = []
        for c in comparisons:
            margin = margins[c.principle.id]
            values.append(margin[int(c.first.text.split()[1])] if isinstance(margin, list) else margin)
        return [Preference(m, m) for m in values]

    judge.asked = asked
    return judge


def rulings(margins, noise=1.0, n=1):
    prompts, groups = compared(n)
    cases = cases_of(prompts, groups, RULES, seed=0)
    judge = by_margins(margins)
    found = rule(judge, cases, noise)
    return judge, [ruled(c, r, noise, rater_id="judge", template="t") for c, r in zip(cases, found, strict=True)], groups


def test_the_higher_principle_decides_and_the_lower_is_not_asked():
    judge, (label,), (group,) = rulings({"safe": -3.0, "kind": 9.0, "brief": 9.0})
    assert judge.asked == ["safe"]
    assert (label.principle, label.margin, label.ranks) == ("safe", -3.0, {group[0].id: 2, group[1].id: 1})
    assert label.comment == "safe decides (noise 1.000 nats)"


def test_within_the_noise_the_next_is_asked_and_the_judgment_says_so():
    judge, (label,), (group,) = rulings({"safe": -1.0, "kind": 2.0, "brief": -9.0})
    assert judge.asked == ["safe", "kind"]
    assert (label.principle, label.ranks) == ("kind", {group[0].id: 1, group[1].id: 2})
    assert label.comment == "asked first: safe -1.000; kind decides (noise 1.000 nats)"


def test_where_none_decides_it_is_a_tie_and_makes_no_pair():
    judge, (label,), (group,) = rulings({"safe": 0.0, "kind": -0.5, "brief": 1.0})
    assert judge.asked == ["safe", "kind", "brief"]
    assert (label.principle, set(label.ranks.values())) == (None, {1})
    assert label.comment.endswith("brief does not decide (noise 1.000 nats)")
    prompts, _ = compared(1)
    assert pairs_of([label], {prompts[0].id: prompts[0]}, {r.id: r for r in group}) == []


def test_a_principle_that_could_not_be_read_is_not_answered_for_by_a_lower_one():
    judge, (label,), _ = rulings({"safe": math.nan, "kind": 9.0, "brief": 9.0})
    assert judge.asked == ["safe"]
    assert (label.principle, label.has_verdict, label.margin) == ("safe", False, None)


def test_each_comparison_goes_its_own_way_and_is_known_again_by_all_that_it_depends_on():
    margins = {"safe": [2.0, 0.0, 0.0], "kind": [0.0, -2.0, 0.0], "brief": [0.0, 0.0, 3.0]}
    judge, labels, _ = rulings(margins, n=3)
    assert [label.principle for label in labels] == ["safe", "kind", "brief"]
    assert judge.asked == ["safe"] * 3 + ["kind"] * 2 + ["brief"]
    prompts, groups = compared(3)
    cases = cases_of(prompts, groups, RULES, seed=0)
    known = earlier_ruling(labels, 1.0, "t")
    assert [known(case) for case in cases] == [[label] for label in labels]
    assert earlier_ruling(labels, 1.1, "t")(cases[0]) is None
    reworded = RULES.model_copy(update={"principles": (BRIEF.model_copy(update={"preference": "Shorter?"}), KIND, SAFE)})
    assert known(cases_of(prompts, groups, reworded, seed=0)[0]) is None


def test_equal_ranks_are_asked_in_an_order_drawn_by_weight():
    heavy, light = principle("a", weight=3.0), principle("b")
    orders = [[p.id for p in by_rank((heavy, light), n)] for n in range(400)]
    assert [order[0] for order in orders] == [draw((heavy, light), n).id for n in range(400)]
    assert sum(order[0] == "a" for order in orders) / 400 == pytest.approx(0.75, abs=0.09)
    prompts, groups = compared(1)
    assert cases_of(prompts, groups, Constitution(title="t", principles=(heavy,)), 5)[0][0] == comparisons_of(
        prompts, groups, Constitution(title="t", principles=(heavy,)), 5
    )[0]  # fmt: skip


def labelled(n: int, names=("safe", "kind")) -> list[Pair]:
    return [
        Pair(prompt=(prompt := Prompt.ask(f"Question {i}?")), chosen=f"good {i}", rejected=f"bad {i}", group_id=prompt.id,
             principle=names[i % len(names)]) for i in range(n)
    ]  # fmt: skip


def knowing(signs: dict[str, float], wrong=lambda _: False, scale=lambda _: 2.0):
    """A judge that knows the good answer; under a principle its margin has the sign of ``signs``."""

    def judge(comparisons):
        preferences = []
        for c in comparisons:
            number = int(c.first.text.split()[1])
            sign = 1 if c.first.text.startswith("good") else -1
            margin = sign * signs[c.principle.id] * scale(number) * (-1 if wrong(number) else 1)
            preferences.append(Preference(margin, margin))
        return preferences

    return judge


def as_comparisons(pairs: list[Pair]) -> list[Comparison]:
    def response(pair, side):
        return Response(prompt_id=pair.prompt.id, model=side, text=getattr(pair, side), finish_reason="stop",
                        generation=Generation(seed=0, temperature=0.0))  # fmt: skip

    return [Comparison(p.prompt, response(p, "chosen"), response(p, "rejected"), SAFE) for p in pairs]


def test_the_noise_is_the_margin_that_is_right_with_probability_73_percent():
    comparisons = as_comparisons(labelled(100))
    # Margins of 2 nats that are right on 73 of 100 pairs: 1 / (1 + exp(-2 / T)) = .73 at T = 2 / log(73 / 27).
    judge = knowing({"safe": 1.0}, wrong=lambda n: n >= 73)
    assert margin_noise(comparisons, judge(comparisons)) == pytest.approx(2 / math.log(73 / 27), rel=1e-4)
    assert margin_noise(comparisons, knowing({"safe": -1.0})(comparisons)) == 100.0  # nothing would decide
    assert margin_noise(comparisons, [Preference(math.nan, 0.0)] * 100) is None


def test_the_rule_is_measured_where_a_principle_decides():
    comparisons = as_comparisons(labelled(60, ("safe",)))
    judge = knowing({"safe": 0.1, "kind": 1.0, "brief": -1.0})
    card = measure_rule(judge, comparisons, RULES, 1.0, seed=0, batch_size=7)
    assert (card["accuracy"], card["n"], card["undecided"]) == (1.0, 60, 0)
    assert card["decided"] == {"brief": 0, "kind": 60, "safe": 0}
    assert card["questions_per_comparison"] == 2
    assert [c.principle.id for c in labelled_case(comparisons[0], RULES, 0, 0)] == ["safe", "kind", "brief"]


def measured(judge, constitution=RULES, n=120, names=("safe", "kind"), **options):
    settings = {"seed": 0, "most": 200, "floor": 0.1, "batch_size": 16} | options
    return measure_principles({"planted": judge}, labelled(n, names), constitution, **settings)


def said(result) -> list[str]:
    return [f"{finding.principle}: {finding.words}" for finding in result["findings"]]


def test_contradictions_idle_principles_and_likes_are_found():
    result = measured(knowing({"safe": 1.0, "kind": 1.0, "brief": -1.0}))
    assert [words.partition(" on ")[0] for words in said(result)] == [
        "kind: contradicts 'brief': prefers the opposite answer", "safe: contradicts 'brief': prefers the opposite answer",
        "kind: this judge does not tell it from safe: the same verdicts",
        "brief: decides none of 120 pairs by priority: a higher principle decides first, or none; rank it higher or reword it",
        "kind: decides none of 120 pairs by priority: a higher principle decides first, or none; rank it higher or reword it",
    ]  # fmt: skip
    figures = {row["principle"]: row for row in result["measured"]}
    assert figures["safe"]["labelled"]["share"] == 1.0
    assert (figures["safe"]["labelled"]["n"], figures["safe"]["accuracy"]["n"], figures["safe"]["rules"]) == (60, 120, 120)
    assert (figures["brief"]["labelled"]["n"], figures["brief"]["accuracy"]["share"]) == (0, 0.0)
    plain = Constitution(title="flat", principles=tuple(p.model_copy(update={"authority": None}) for p in RULES.principles))
    idle = measured(knowing({"safe": 1.0, "kind": 1.0, "brief": 0.001}), plain)
    assert [words for words in said(idle) if words.startswith("brief: never decides: its margin exceeds the noise on 0% of 120")]
    assert {row["rules"] for row in idle["measured"]} == {None}


def test_a_judge_at_chance_judges_no_principle():
    coin = knowing({"safe": 1.0, "kind": 1.0, "brief": 1.0}, wrong=lambda n: n % 4 < 2)
    (words,) = said(measured(coin))
    assert words.startswith("None: the judge is right on 50% of the pairs")
    assert "no principle is judged" in words
    few = measured(coin, most=10)
    assert (few["pairs"], few["pairs_in_file"]) == (10, 120)
    (words,) = said(measured(lambda batch: [Preference(math.nan, math.nan) for _ in batch]))
    assert words.startswith("None: the judge gave no verdict on these pairs, so no principle is judged")


def test_a_principle_that_is_read_backwards_is_named():
    pairs = ("safe", "safe", "safe", "kind")
    result = measured(knowing({"safe": 1.0, "kind": -1.0, "brief": 1.0}), names=pairs)
    assert any(words.startswith("kind: the judge is right on only 0% of 30 pairs") for words in said(result))


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        ({"preference": "Choose the more formal reply."}, {"preference": "Choose the less formal reply."}, "for the opposite"),
        ({"preference": "Which reply flatters?"}, {"preference": "Which reply doesn't flatter?"}, None),
        ({"preference": "Which reply has humour?"}, {"preference": "Which reply is without humour?"}, "for the opposite"),
        ({"preference": "Is it short?", "tags": ("benign",)}, {"preference": "Is it not short?", "tags": ("red_team",)}, None),
        ({"preference": "a?", "question": "Rude?"}, {"preference": "b?", "question": "Rude?", "good_answer": "yes"}, "other"),
        ({"preference": "Choose the reply that better keeps this principle: Be kind."},
         {"preference": "Choose the reply that better keeps this principle: Be honest."}, None),
    ],
)  # fmt: skip
def test_contradictions_in_words_are_found(one, other, words):
    principles = (Principle(id="p", title="p", **one), Principle(id="q", title="q", **other))
    findings = [f.words for f in check(Constitution(title="t", principles=principles)) if f.principle == "q"]
    assert (len(findings) == 1 and words in findings[0]) if words else findings == []


def ranked_recipe(folder, model, **feedback):
    recipe = write_tiny_recipe(folder, model)
    constitution = json.loads(json.dumps(CONSTITUTION))
    constitution["principles"].append({"id": "calm", "title": "calm", "preference": "Which reply is calmer?", "priority": 2})
    constitution["principles"][0]["priority"] = 1
    (folder / "constitution.yaml").write_text(yaml.safe_dump(constitution))
    values = yaml.safe_load(recipe.read_text())
    values["feedback"] |= {"priorities": True} | feedback
    recipe.write_text(yaml.safe_dump(values))
    return recipe


def test_a_run_judges_by_priority_and_stores_who_decided(tmp_path):
    write_some_prompts(tmp_path / "prompts.jsonl", 8)
    ranks = {"general": 1, "helpful": 1, "tone": 2}
    constitution = yaml.safe_load((Path(__file__).parents[1] / "constitutions/demo.yaml").read_text())
    constitution["principles"] = [p | {"priority": ranks[p["id"]]} for p in constitution["principles"] if p["id"] in ranks]
    (tmp_path / "constitution.yaml").write_text(yaml.safe_dump(constitution))
    settings = {"generator": "base", "labelled_pairs": "package:charter.testbed/data/judge_pairs.jsonl", "gate_pairs": 24,
                "priorities": True, "protocol": "letters", "max_new_tokens": 24}  # fmt: skip
    recipe = {"model": "package:charter.testbed/model", "constitution": "constitution.yaml", "precision": "float32",
              "prompts": {"files": ["prompts.jsonl"]}, "revise": None, "sft": None, "rl": None, "evaluation": None,
              "feedback": settings}  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run_recipe(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "run", until="feedback", quiet=True)
    labels = list(read_jsonl(tmp_path / "run/feedback/judgments.jsonl", Judgment))
    result = json.loads((tmp_path / "run/feedback/manifest.json").read_text())["result"]
    ruling = result["judge"]["priorities"]
    decided = [label for label in labels if label.principle is not None]
    assert len(labels) == 16
    assert result["decided"] == dict(Counter(label.principle for label in decided))
    assert result["pairs"] == len(decided) >= 4
    assert all(abs(label.margin) > ruling["noise_nats"] for label in decided)
    assert all("nats)" in label.comment for label in labels)
    assert (ruling["n"] + ruling["undecided"], set(ruling["decided"])) == (24, set(ranks))


@pytest.mark.parametrize(
    ("feedback", "ranked", "words"),
    [
        ({"labelled_pairs": None}, True, "priorities needs labelled_pairs"),
        ({}, False, "no principle goes before another; give principles a priority or an authority"),
    ],
)
def test_priorities_need_pairs_and_ranks(tmp_path, random_llama, capsys, feedback, ranked, words):
    recipe = ranked_recipe(tmp_path, random_llama, **feedback)
    if not ranked:
        (tmp_path / "constitution.yaml").write_text(yaml.safe_dump(CONSTITUTION))
    code = run_command(["feedback", str(recipe), "--out", str(tmp_path / "run"), "--quiet"])
    assert (code, words in capsys.readouterr().err) == (2, True)


def test_the_command_measures_principles_on_the_testbed(tmp_path, capsys):
    path = tmp_path / "c.yaml"
    principles = [
        {"id": "harm", "title": "harm", "preference": "Which of the two replies has less harmful advice?", "tags": ["red_team"]},
        {"id": "peace", "title": "peace", "preference": "Which reply avoids violence better?"},
    ]
    path.write_text(yaml.safe_dump({"title": "two", "principles": principles}))
    options = ["--pairs", "package:charter.testbed/data/judge_pairs.jsonl", "--model", "package:charter.testbed/model"]
    assert run_command(["constitution", "check", str(path), *options, "--protocol", "letters", "--most", "24", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["pairs"], found["pairs_in_file"]) == (24, 600)
    assert all(row["accuracy"]["share"] > 0.8 for row in found["measured"])
    assert run_command(["constitution", "check", str(path), *options, "--protocol", "letters", "--most", "24"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("24 of 600 labelled pairs, judge read by letters, right on ")
    assert lines[1].split() == ["right", "on", "its", "pairs", "right", "on", "all", "decides"]
    rows = [{"prompt": f"q{i}", "chosen": "Yes.", "rejected": "No.", "p": 0.5 if i < 2 else 1} for i in range(6)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {**rows[0], "rejected": "Yes."}]))
    assert run_command(["constitution", "check", str(path), "--pairs", str(tmp_path / "p.jsonl"), *options[2:]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("4 of 6 labelled pairs")
    assert lines[1].startswith("1 rows left out: chosen and rejected")
    assert lines[2] == "2 pairs left out: by their label neither answer is the better one"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--pairs", "p.jsonl"], "--pairs needs a judge; give --model too"),
        (["--model", "package:charter.testbed/model"], "no labelled pairs to measure on"),
        (["--protocol", "maybe"], "unknown protocol 'maybe'; use auto, letters, yes_no, dialogue, rubric, likelihood"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path, capsys, options, words):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(CONSTITUTION))
    assert run_command(["constitution", "check", str(path), *options]) == 2
    assert words in capsys.readouterr().err
