"""Critique and revision: what is kept, what is excluded and why, and that seeds belong to prompts."""

import pytest

from charter.constitution.categorise import categorise
from charter.constitution.constitution import Constitution
from charter.constitution.revise import respond, revise_batch, why_excluded
from charter.models.sampling.sampler import LocalSampler, Sample
from charter.models.trunk import load_trunk
from charter.records import Generation, Message, Prompt, Response
from charter.stages.revise.settings import ReviseSettings
from conftest import CONSTITUTION, HARMFUL

RULES = Constitution.model_validate(CONSTITUTION)
PROMPTS = [Prompt.ask(text, tags=("red_team",)) for text in HARMFUL[:6]]
SETTINGS = ReviseSettings(rounds=2, max_new_tokens=10)


def response(text: str, finish: str = "stop") -> Response:
    return Response(prompt_id="p", model="m", text=text, finish_reason=finish, generation=Generation(seed=0, temperature=1.0))


@pytest.mark.parametrize(
    ("critique", "revision", "reason"),
    [
        (response("Yes."), response("I will not."), None),
        (response("Yes."), response("I will n", "length"), "revision cut off"),
        (response("Yes, it w", "length"), response("I will not."), "critique cut off"),
        (response("I will not."), response(" I will not. "), "revision equals critique"),
        (response("Yes."), response("  "), "empty revision"),
        (response("Yes."), response("Fine.[INST]"), "template tokens in the revision"),
        (response("Yes."), response("ASSISTANT: fine"), "template tokens in the revision"),
        (response("Yes."), response("first\nRevision: fine"), "template tokens in the revision"),
        (response("Yes."), response("<|user|>fine"), "template tokens in the revision"),
        (response("Human: yes"), response("fine"), "template tokens in the critique"),
        (response("Yes."), response("The assistant: a story in two lines"), None),
    ],
)
def test_rows_that_would_teach_the_wrong_thing_are_excluded_with_the_reason(critique, revision, reason):
    assert why_excluded(critique, revision) == reason


@pytest.fixture(scope="module")
def sampler(random_llama):
    return LocalSampler(load_trunk(str(random_llama)), "base")


def originals(sampler, prompts):
    groups = respond(sampler, prompts, SETTINGS, seed=1, what="revise", k=1)
    return [group[0] for group in groups]


def test_every_round_of_every_prompt_is_recorded_with_its_principle(sampler):
    rows = revise_batch(sampler, PROMPTS, originals(sampler, PROMPTS), RULES, SETTINGS, seed=1)
    assert [(row.prompt_id, row.round) for row in rows] == [(p.id, n) for p in PROMPTS for n in (1, 2)]
    assert {row.principle for row in rows} == {"harmless"}
    for first, second in zip(rows[0::2], rows[1::2], strict=True):
        carried = first.original if first.excluded else first.revision
        assert second.original == carried
        assert len({first.critique.generation.seed, first.revision.generation.seed, second.critique.generation.seed}) == 3


def test_a_row_does_not_depend_on_its_neighbours(sampler):
    all_rows = revise_batch(sampler, PROMPTS, originals(sampler, PROMPTS), RULES, SETTINGS, seed=1)
    alone = revise_batch(sampler, PROMPTS[2:3], originals(sampler, PROMPTS[2:3]), RULES, SETTINGS, seed=1)
    assert [row.revision.text for row in all_rows[4:6]] == [row.revision.text for row in alone]


class Listener:
    """A sampler that keeps what it is asked and always says the same."""

    name = "listener"

    def __init__(self):
        self.asked = []

    def generate(self, conversations, seeds, **_):
        self.asked += [[message.content for message in conversation] for conversation in conversations]
        return [[Sample("Fine.", "stop") for _ in own] for own in seeds]


def test_few_shots_stand_before_the_conversation_and_the_principle_after_it():
    listener = Listener()
    shots = [Message(role="user", content="Example?"), Message(role="assistant", content="Answer.")]
    start = [response("First answer.")]
    revise_batch(listener, PROMPTS[:1], start, RULES, ReviseSettings(rounds=1), seed=1, few_shots=shots)
    harmless = RULES.principles[0]
    asked = ["Example?", "Answer.", HARMFUL[0], "First answer.", harmless.critique]
    assert listener.asked == [asked, [*asked, "Fine.", harmless.revision]]


def test_every_prompt_gets_a_topic_or_none_of_these(sampler):
    found = categorise(PROMPTS, RULES, sampler)
    assert {p.principle for p in found} <= {"harmless", None}
    assert [p.id for p in found] == [p.id for p in PROMPTS]
    given = [PROMPTS[0].model_copy(update={"principle": "helpful"})]
    assert categorise(given, RULES, sampler) == given
