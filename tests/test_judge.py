"""Planted pairs go the whole way from a judge to a stored label and a training pair."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charter.commands.app import run_command
from charter.constitution.constitution import Constitution, Principle
from charter.evaluation.measures import measure_of
from charter.evaluation.page import rows_left_out
from charter.judging.gate import better_judge, judge_gate
from charter.judging.judge import (
    QUESTIONS,
    Comparison,
    LettersJudge,
    Preference,
    YesNoJudge,
    ask,
    comparisons_of,
    judgment,
    labelled_comparisons,
    pairs_of,
)
from charter.judging.principles import measure_principles
from charter.judging.protocols import PROTOCOLS, judges_of
from charter.models.sampling.sampler import LocalSampler, Sample
from charter.models.trunk import load_trunk
from charter.pipeline import run_recipe
from charter.recipe.files import load_recipe
from charter.records import Generation, Judgment, Pair, Prompt, Response
from charter.run.files import read_jsonl
from charter.run.run import RecordLog
from charter.stages.evaluate.settings import MeasureSettings
from charter.testbed.standins import save_stand_in
from conftest import CONSTITUTION, write_tiny_recipe

RULES = Constitution.model_validate(CONSTITUTION)
SCALE = 3.0


def response(prompt: Prompt, text: str, seed: int) -> Response:
    return Response(prompt_id=prompt.id, model="m", text=text, finish_reason="stop",
                    generation=Generation(seed=seed, temperature=1.0))  # fmt: skip


def planted(n: int = 30) -> tuple[list[Prompt], list[list[Response]]]:
    """Prompts with two responses each, "good" and "bad", the good one first for every other prompt."""
    prompts = [Prompt.ask(f"Question {i}: yes?\nuser: no", tags=("red_team",)) for i in range(n)]
    texts = [("good {x}", "bad") if i % 2 else ("bad", "good {x}") for i in range(n)]
    return prompts, [[response(p, t, i) for i, t in enumerate(two)] for p, two in zip(prompts, texts, strict=True)]


def knowing(sign: int, bias: float = 0.0):
    """A judge that knows: +1 perfect, -1 inverted; with a position bias in nats."""

    def judge(comparisons):
        signal = [sign * SCALE * (1 if c.first.text.startswith("good") else -1) for c in comparisons]
        return [Preference(s + bias, s - bias) for s in signal]

    return judge


def label(judge, tmp_path) -> tuple[list[Judgment], list[Pair]]:
    """The path of the feedback stage: comparisons, judge, one line on disk each, read back, pairs."""
    prompts, groups = planted()
    comparisons = comparisons_of(prompts, groups, RULES, seed=0)
    log = RecordLog(tmp_path / "judgments.jsonl", Judgment)
    stored = log.work(
        comparisons, 7,
        lambda batch: (judgment(c, p, rater_id="planted", abstain_below=0.1)
                       for c, p in zip(batch, judge(batch), strict=True)), quiet=True,
    )  # fmt: skip
    by_id = {r.id: r for group in groups for r in group}
    return stored, pairs_of(stored, {p.id: p for p in prompts}, by_id)


def test_a_perfect_judge_labels_all_right_and_an_inverted_one_all_wrong(tmp_path):
    _, right = label(knowing(1), tmp_path / "a")
    _, wrong = label(knowing(-1), tmp_path / "b")
    assert [pair.chosen for pair in right] == ["good {x}"] * 30
    assert [pair.chosen for pair in wrong] == ["bad"] * 30
    assert {round(pair.weight, 6) for pair in right} == {round(1 / (1 + math.exp(-SCALE)), 6)}


def test_a_biased_judge_gives_the_same_labels(tmp_path):
    _, plain = label(knowing(1), tmp_path / "a")
    _, biased = label(knowing(1, bias=50.0), tmp_path / "b")
    assert [(p.chosen, p.rejected, round(p.weight, 9)) for p in plain] == [
        (p.chosen, p.rejected, round(p.weight, 9)) for p in biased
    ]


def test_swapping_the_responses_gives_the_same_label():
    prompts, groups = planted()
    comparisons = comparisons_of(prompts, groups, RULES, seed=0)
    judge = knowing(1, bias=2.0)
    for c, p, q in zip(comparisons, judge(comparisons), judge([c.swap() for c in comparisons]), strict=True):
        one = judgment(c, p, rater_id="x", abstain_below=0.1)
        other = judgment(c.swap(), q, rater_id="x", abstain_below=0.1)
        assert one.ranks == other.ranks


@given(st.floats(-6, 6), st.floats(-40, 40))
def test_an_additive_bias_cancels_exactly(signal, bias):
    assert Preference(signal + bias, signal - bias).margin == pytest.approx(signal, abs=1e-9)


def test_no_verdict_is_a_third_value(tmp_path):
    def broken(comparisons):
        return [Preference(math.nan, 1.0)] * 10 + knowing(1)(comparisons[10:]) if len(comparisons) > 10 else [
            Preference(math.nan, math.nan) for _ in comparisons]  # fmt: skip

    stored, pairs = label(broken, tmp_path)
    assert all(not j.has_verdict and j.margin is None for j in stored)
    assert pairs == []


def test_a_margin_inside_the_noise_is_a_tie_and_no_pair(tmp_path):
    stored, pairs = label(lambda cs: [Preference(0.05, 0.05) for _ in cs], tmp_path)
    assert all(set(j.ranks.values()) == {1} for j in stored)
    assert pairs == []


def test_labels_reach_the_disk_one_by_one(tmp_path):
    prompts, groups = planted()
    comparisons = comparisons_of(prompts, groups, RULES, seed=0)
    path = tmp_path / "judgments.jsonl"
    seen = []

    def produce(batch):
        for c, p in zip(batch, knowing(1)(batch), strict=True):
            seen.append(len(list(read_jsonl(path, Judgment))))
            yield judgment(c, p, rater_id="x", abstain_below=0.1)

    RecordLog(path, Judgment).work(comparisons, 10, produce, quiet=True)
    assert seen == list(range(30))


def test_the_gate_measures_what_was_planted():
    pairs = [Pair(prompt=Prompt.ask(f"q{i}", tags=("red_team",)), chosen=f"good {i}", rejected="bad", group_id=str(i),
                  principle="harmless") for i in range(200)]  # fmt: skip
    card = judge_gate(knowing(1, bias=1.5), pairs, RULES, seed=0, batch_size=32)
    assert card["accuracy"] == 1.0
    assert card["position_bias_nats"] == pytest.approx(1.5)
    assert card["verdict_rate"] == 1.0
    assert card["swap_consistency"] == 1.0
    assert judge_gate(knowing(-1), pairs, RULES, seed=0, batch_size=32)["accuracy"] == 0.0
    one_sided = judge_gate(lambda cs: [Preference(4.0, -4.0) for _ in cs], pairs, RULES, seed=0, batch_size=32)
    assert one_sided["swap_consistency"] == 0.0
    assert one_sided["accuracy"] == 0.5
    assert judge_gate(knowing(1), [], RULES, seed=0, batch_size=32) is None
    silent = judge_gate(lambda cs: [Preference(math.nan, math.nan) for _ in cs], pairs, RULES, seed=0, batch_size=32)
    assert (silent["accuracy"], silent["verdict_rate"], silent["ece"], silent["n_unscored"]) == (None, 0.0, None, len(pairs))


def test_labelled_comparisons_do_not_give_the_answer_away():
    pairs = [Pair(prompt=Prompt.ask(f"q{i}", tags=("red_team",)), chosen="good", rejected="bad", group_id=str(i))
             for i in range(400)]  # fmt: skip
    first = sum(c.first.text == "good" for c in labelled_comparisons(pairs, RULES, seed=0))
    assert 150 < first < 250


def test_the_question_shows_the_principle_then_both_responses_as_they_are():
    prompt = Prompt.ask("Is {second} a word?", tags=("red_team",))
    comparison = Comparison(prompt, response(prompt, "{principle}", 0), response(prompt, "two", 1),
                            Principle(id="p", title="p", preference="Which is better?"))  # fmt: skip
    text = ask(comparison)[0].content
    assert text.index("Which is better?") < text.index("{second}") < text.index("(A) {principle}") < text.index("(B) two")


def test_a_language_model_as_judge_is_free_of_position(random_llama):
    from charter.models.sampling.sampler import LocalSampler

    judge = LettersJudge(LocalSampler(load_trunk(str(random_llama)), "random"))
    prompts, groups = planted(6)
    comparisons = comparisons_of(prompts, groups, RULES, seed=0)
    there, back = judge(comparisons), judge([c.swap() for c in comparisons])
    for a, b in zip(there, back, strict=True):
        assert a.margin == pytest.approx(-b.margin, abs=1e-5)


@pytest.mark.parametrize("name", sorted(QUESTIONS))
def test_every_question_of_the_table_is_a_measure_of_its_name(name):
    """One row of the table and one text make a question: the measure of that name puts its words to the judge."""

    class Reader:
        name = "reader"

        def option_logprobs(self, conversations, options):
            assert all(tuple(choices) == ("Yes", "No") for choices in options)
            sure = [QUESTIONS[name].strip().splitlines()[-1] in conversation[0].content for conversation in conversations]
            return [[0.0, -2.0] if yes else [-2.0, 0.0] for yes in sure]

    measure = measure_of(name, MeasureSettings(source="judge:base", better="higher"), lambda _: Reader())
    assert measure.of([Prompt.ask("How do I rest?")], ["Sleep."]) == [pytest.approx(1 / (1 + math.exp(-2)))]


class Reader:
    """A model for which a question is answered yes by so many nats as its last reply has the word "good"; A and B alike."""

    name = "reader"

    def option_logprobs(self, conversations, options):
        return [[3.0 * c[0].content.rpartition("assistant: ")[2].count("good"), 0.0] if o == ("Yes", "No") else [2.0, 0.0]
                for c, o in zip(conversations, options, strict=True)]  # fmt: skip


def test_a_judge_that_reads_each_response_alone_has_no_positions():
    prompts, groups = planted()
    comparisons = comparisons_of(prompts, groups, RULES, seed=0)
    preferences = YesNoJudge(Reader())(comparisons)
    assert [p.margin for p in preferences] == [3.0 if c.first.text.startswith("good") else -3.0 for c in comparisons]
    assert {p.position_bias for p in preferences} == {0.0}


def test_the_better_protocol_is_chosen_on_one_half_and_measured_on_the_other():
    pairs = [Pair(prompt=Prompt.ask(f"q{i}", tags=("red_team",)), chosen="good", rejected="bad", group_id=str(i))
             for i in range(80)]  # fmt: skip
    judges = judges_of("auto", Reader(), RULES)
    judge, card = better_judge(judges, pairs, RULES, seed=0, batch_size=32)
    assert isinstance(judge, YesNoJudge)
    assert card["protocol"] == "yes_no"
    assert card["accuracy"] == 1.0
    assert 25 < card["n"] < 55  # of the half that did not choose
    rows = {row["protocol"]: row for row in card["protocols"]}
    assert rows["letters"]["accuracy"] == 0.5
    assert rows["letters"]["n"] == card["n"]
    assert {name for name, row in rows.items() if row["chosen"]} == {"yes_no"}
    assert list(rows) == ["letters", "yes_no", "dialogue", "likelihood"]
    single, whole = better_judge({"letters": judges["letters"]}, pairs, RULES, seed=0, batch_size=32)
    assert isinstance(single, LettersJudge)
    assert whole["n"] == 80
    assert better_judge(judges, [], RULES, seed=0, batch_size=32)[1] is None


def test_a_protocol_that_reads_few_pairs_is_not_the_better_one():
    pairs = [Pair(prompt=Prompt.ask(f"q{i}", tags=("red_team",)), chosen=f"good {i}", rejected="bad", group_id=str(i),
                  principle="harmless") for i in range(60)]  # fmt: skip

    def number(comparison):
        return int(comparison.prompt.last_turn[1:])

    def silent(batch):
        return [
            p if number(c) % 12 == 0 else Preference(math.nan, math.nan) for c, p in zip(batch, knowing(1)(batch), strict=True)
        ]

    def mostly_right(batch):
        return [knowing(-1 if number(c) % 10 == 1 else 1)([c])[0] for c in batch]

    judge, card = better_judge({"silent": silent, "mostly": mostly_right}, pairs, RULES, seed=0, batch_size=8)
    assert (judge, card["verdict_rate"]) == (mostly_right, 1.0)


class Reasoner:
    """A judge that copies what it is shown under (A) as its reason, and then chooses by the odds of a table of reasons."""

    name = "reasoner"

    def __init__(self, odds):
        self.odds = odds

    def generate(self, conversations, _seeds, *, temperature, **_limits):
        assert temperature == 0
        shown = [turns[-1].content.partition("(A) ")[2].partition("\n")[0] for turns in conversations]
        return [[Sample(text, "stop")] for text in shown]

    def option_logprobs(self, conversations, options):
        assert set(options) == {("A", "B")}
        return [[self.odds[turns[-2].content], 0.0] for turns in conversations]


@given(first=st.floats(-30, 30), second=st.floats(-30, 30))
def test_labels_after_reasons_are_clamped_and_do_not_depend_on_the_order(first, second):
    prompts, groups = planted(2)
    comparisons = comparisons_of(prompts, groups, RULES, seed=0)
    judge = PROTOCOLS["reasoned"](Reasoner({"good {x}": first, "bad": second}))
    preferences = judge(comparisons)
    for comparison, preference in zip(comparisons, preferences, strict=True):
        assert 0.4 - 1e-9 <= 1 / (1 + math.exp(-preference.margin)) <= 0.6 + 1e-9
        (swapped,) = judge([comparison.swap()])
        assert swapped == Preference(-preference.first_as_b, -preference.first_as_a)
    labels = [judgment(c, p, rater_id="r", abstain_below=0.0, template=judge.template)
              for c, p in zip(comparisons, preferences, strict=True)]  # fmt: skip
    by_id = {r.id: r for group in groups for r in group}
    assert all(0.5 <= pair.weight <= 0.6 + 1e-9 for pair in pairs_of(labels, {p.id: p for p in prompts}, by_id))


def test_reasons_keep_the_sign_in_each_order_and_an_unread_choice_is_no_verdict():
    prompts, groups = planted(1)  # "bad" first
    comparisons = comparisons_of(prompts, groups, RULES, seed=0)
    (sure,) = PROTOCOLS["reasoned"](Reasoner({"bad": -9.0, "good {x}": 9.0}))(comparisons)
    assert sure == Preference(pytest.approx(-math.log(1.5)), pytest.approx(-math.log(1.5)))  # nats: .4 in both orders
    (biased,) = PROTOCOLS["reasoned"](Reasoner({"bad": 9.0, "good {x}": 9.0}))(comparisons)
    assert biased.margin == 0
    (unread,) = PROTOCOLS["reasoned"](Reasoner({"bad": math.nan, "good {x}": 9.0}))(comparisons)
    assert unread.margin is None


def test_a_question_without_room_for_reasons_gets_no_verdict(tmp_path, caplog):
    model = save_stand_in(tmp_path / "model", "llama", context=4096)
    judge = PROTOCOLS["reasoned"](LocalSampler(load_trunk(str(model)), "small"))
    prompts, groups = planted(2)
    short, long = comparisons_of(prompts, groups, RULES, seed=0)
    long = replace(long, first=long.first.model_copy(update={"text": "word " * 4096}))
    read, unread = judge([short, long])
    assert read.margin is not None
    assert judge([short])[0].margin == pytest.approx(read.margin)
    assert (unread.margin, judge([long])[0].margin) == (None, None)
    assert "they get no verdict" in caplog.text


def test_a_run_whose_judge_gives_reasons(tmp_path, capsys):
    # What a random model writes is some ten tokens for each of its own when it is read again.
    model = save_stand_in(tmp_path / "model", "llama", context=4096)
    recipe = write_tiny_recipe(tmp_path, model, feedback={"protocol": "reasoned", "abstain_below": 0.0, "gate_pairs": 4})
    with open(tmp_path / "pairs.jsonl", "a") as file:
        file.write(json.dumps({"prompt": "q", "chosen": "same", "rejected": "same"}) + "\n")
    report = run_recipe(load_recipe(recipe), tmp_path / "run", until="feedback", quiet=True)
    assert [row["n"] for row in report["left_out"] if row["reason"].startswith("left out: labelled pair: chosen and rej")] == [1]
    stored = list(read_jsonl(tmp_path / "run/feedback/judgments.jsonl", Judgment))
    assert all(abs(margin) <= math.log(1.5) + 1e-9 for label in stored for margin in label.margins_by_order)
    assert max(pair.weight for pair in read_jsonl(tmp_path / "run/feedback/pairs.jsonl", Pair)) <= 0.6 + 1e-9
    generated = {}
    for protocol in ("reasoned", "letters"):
        assert run_command(["plan", str(recipe), "--json", "--set", f"feedback.protocol={protocol}"]) == 0
        plan = json.loads(capsys.readouterr().out)
        generated[protocol] = next(row["generated"] for row in plan["stages"] if row["stage"] == "feedback")
    assert generated["reasoned"] > generated["letters"]
    assert run_command(["plan", str(recipe), "--set", "feedback.calibration=2.0"]) == 2
    assert "protocol: reasoned clamps the labels to .4 to .6" in capsys.readouterr().err
    assert run_command(["plan", str(recipe), "--set", "feedback.abstain_below=0.5"]) == 2
    assert "so all would be ties; lower it" in capsys.readouterr().err


def test_labelled_pairs_get_a_principle_by_the_rule_of_comparisons():
    """A pair of another topic is not judged by this topic's principle, and one to which none applies is counted."""
    rules = Constitution.model_validate({"title": "t", "principles": [
        {"id": "peace", "title": "p", "preference": "more peace", "tags": ["topic", "red_team"]},
        {"id": "privacy", "title": "p", "preference": "more privacy", "tags": ["topic", "red_team"]}]})  # fmt: skip

    def pair(i, **fields):
        return Pair(prompt=Prompt.ask(f"q{i}", **fields), chosen="good", rejected="bad", group_id=str(i))

    peace = [pair(i, principle="peace", tags=("red_team",)) for i in range(20)]
    untagged = [pair(20 + i) for i in range(20)]
    benign = [pair(40 + i, tags=("benign",)) for i in range(5)]
    drawn = {c.prompt.id: c.principle.id for c in labelled_comparisons([*peace, *untagged, *benign], rules, seed=0)}
    assert {drawn[p.prompt.id] for p in peace} == {"peace"}
    assert {drawn[p.prompt.id] for p in untagged} == {"peace", "privacy"}
    assert len(drawn) == 40
    assert judge_gate(knowing(1), [*peace, *benign], rules, seed=0, batch_size=32)["n_without_principle"] == 5


def test_a_labelled_tie_is_no_answer_to_be_right_about():
    rules = Constitution(title="t", principles=(Principle(id="p", title="p", preference="Which is better?"),))
    pairs = [Pair(prompt=Prompt.ask(f"q{i}"), chosen="good", rejected="bad", group_id=str(i), weight=0.5 if i < 12 else 1.0)
             for i in range(20)]  # fmt: skip
    card = judge_gate(knowing(1), pairs, rules, seed=0, batch_size=32)
    assert (card["n"], card["n_ties"], card["n_without_principle"]) == (8, 12, 0)
    (left_out,) = rows_left_out({"feedback": {"judge": card}})
    assert left_out == {"stage": "feedback", "reason": "labelled pair that is a tie", "n": 12}
    measured = measure_principles({"letters": knowing(1)}, pairs, rules, seed=0, most=20, floor=0.1, batch_size=32)
    assert (measured["pairs"], measured["ties"], measured["without_principle"]) == (8, 12, 0)


def test_a_judgment_keeps_the_hash_of_the_question_that_was_asked():
    prompt = Prompt.ask("q", tags=("red_team",))
    rules = [Principle(id="p", title="p", preference="Which?", question=q) for q in ("Is it rude?", "Is it harmful?")]
    asked = [Comparison(prompt, response(prompt, "a", 0), response(prompt, "b", 1), rule) for rule in rules]

    def hashes(template):
        return {judgment(c, Preference(1, 1), rater_id="j", abstain_below=0, template=template).instructions_hash for c in asked}

    assert len(hashes(YesNoJudge.template)) == 2
    assert len(hashes(LettersJudge.template)) == 1  # the letters are asked with the preference text alone


def test_a_margin_of_exactly_zero_is_a_tie():
    """The win rates ask with nothing to abstain below; a judge that cannot tell must not make the second answer win."""
    prompts, groups = planted()
    for comparison in comparisons_of(prompts, groups, RULES, seed=0)[:4]:
        stored = judgment(comparison, Preference(0.5, -0.5), rater_id="x", abstain_below=0.0)
        assert set(stored.ranks.values()) == {1}
