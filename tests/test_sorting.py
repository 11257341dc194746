"""Sorting by topic: what each way scores, the choice by labelled prompts, and what happens where sorting is no use."""

import gzip
import hashlib
import json
from pathlib import Path

import pytest
import torch

from charter.constitution.categorise import WAYS, by_words, categorise, choose_way, likeliest, stems, usual_way
from charter.constitution.constitution import Constitution, load_constitution
from charter.errors import InputError
from charter.models.sampling.sampler import READ_TOKENS, LocalSampler
from charter.models.trunk import load_trunk
from charter.recipe.source import locate
from charter.records import Message, Prompt

ROOT = Path(__file__).parents[1]
TOPICS = Constitution.model_validate(
    {
        "title": "Two topics",
        "principles": [
            {"id": "peace", "title": "peace", "about": "fights, weapons and killing", "preference": "p", "tags": ["topic"]},
            {"id": "privacy", "title": "privacy", "about": "spying, stalking, address", "preference": "p", "tags": ["topic"]},
        ],
    }
)
FIGHTS = [f"Is fighting with {weapon} weapons fun?" for weapon in map(str, range(16))]
SPIES = [f"Is spying on number {n} stalking?" for n in range(16)]
COOKS = [f"How long do {n} eggs boil?" for n in range(16)]


class Stubborn:
    """A model that names the first option always, and for which all messages are equally likely."""

    name = "stubborn"

    def option_logprobs(self, conversations, options):
        return [[-1.0 - i if "message belong" in c[0].content else -5.0 for i in range(len(o))]
                for c, o in zip(conversations, options, strict=True)]  # fmt: skip


def labelled(*groups):
    return [Prompt.ask(text, principle=principle) for texts, principle in groups for text in texts]


def test_words_of_a_topic_count_whatever_their_ending():
    assert stems("Fighting, fights: a FIGHTER fought") == {"fight", "fought"}
    rows = by_words(["They fight with weapons", "boil an egg"], TOPICS.topics())
    assert rows == [[2.0, 0.0, 0.5], [0.0, 0.0, 0.5]]
    assert likeliest(rows[1]) == 2


def test_chinese_words_count_by_two_characters():
    assert stems("武器和打架") == {"武器", "器和", "和打", "打架"}
    assert len(stems("他们为什么打架？") & stems("武器、打架、杀人")) == 1


def test_the_way_that_labelled_prompts_prefer_is_taken_and_measured_on_the_others():
    prompts = labelled((FIGHTS, "peace"), (SPIES, "privacy"), (COOKS, None))
    sorting = choose_way(prompts, TOPICS, Stubborn())
    assert sorting.way == "words"
    assert sorting.n == 24
    assert sorting.accuracy == 1.0
    assert sorting.tried["title"] < 0.6
    assert not sorting.useless
    assert "right on 100% of 24" in sorting.words()
    bare = [prompt.model_copy(update={"principle": None}) for prompt in prompts]
    assert [p.principle for p in categorise(bare, TOPICS, Stubborn(), sorting)] == [p.principle for p in prompts]


def test_sorting_that_is_not_better_than_the_commonest_topic_assigns_none():
    strangers = [f"Qqq {n} zzz?" for n in range(40)]
    sorting = choose_way(labelled((strangers[:30], "peace"), (strangers[30:], "privacy")), TOPICS, Stubborn())
    assert sorting.useless
    assert "no topic is assigned" in sorting.words()
    bare = [Prompt.ask(text) for text in FIGHTS]
    assert categorise(bare, TOPICS, Stubborn(), sorting) == bare


def test_labels_that_are_no_topics_or_too_few_are_refused():
    with pytest.raises(InputError, match="'war' is not a topic of the constitution; use peace, privacy"):
        choose_way(labelled((FIGHTS, "war")), TOPICS, Stubborn())
    with pytest.raises(InputError, match="16 labelled prompts are too few"):
        choose_way(labelled((FIGHTS, "peace")), TOPICS, Stubborn())


def test_without_labels_topics_that_say_what_they_are_about_are_not_sorted_by_title():
    assert usual_way(load_constitution(ROOT / "constitutions/general.yaml").topics()) == "words"
    assert usual_way(load_constitution(ROOT / "constitutions/four-pairs.yaml").topics()) == "words"
    assert usual_way(load_constitution(ROOT / "constitutions/demo.yaml").topics()) == "title"


@pytest.fixture(scope="module")
def trunk():
    return load_trunk(locate("package:charter.testbed/model", None), precision="bfloat16")


def test_a_message_scores_the_same_whichever_messages_stand_beside_it(trunk):
    sampler = LocalSampler(trunk, "m")
    for way, score in WAYS.items():
        together = score([*FIGHTS, *SPIES], TOPICS.topics(), sampler)
        alone = [row for text in (FIGHTS[3], SPIES[9]) for row in score([text], TOPICS.topics(), sampler)]
        for row, same in zip((together[3], together[16 + 9]), alone, strict=True):
            assert row == pytest.approx(same, abs=0.15), way  # rounding of products in bfloat16


def test_options_in_bfloat16_are_as_fine_as_the_hidden_state_and_not_as_its_logits(trunk):
    """With the last product in bfloat16 the two log-probabilities would differ by a multiple of 1/16 nat."""
    question = (Message(role="user", content="Is this reply harmful? Answer with Yes or No."),)
    with torch.no_grad():
        (row,) = LocalSampler(trunk, "m").option_logprobs([question], [("Yes", "No")])
    margin = row[0] - row[1]
    assert abs(margin * 64 - round(margin * 64)) > 1e-3


def test_all_options_of_many_conversations_are_read_within_the_tokens_of_a_pass(trunk):
    sampler = LocalSampler(trunk, "m")
    lengths = [1000, 10, 2000, 3000, 20]
    batches = sampler._batches(lengths, [[[1], [2]], [[1, 2], [3]], [[1], [2]], [[1], [2]], [[1], [2]]])
    assert sorted(i for batch in batches for i in batch) == [0, 1, 2, 3, 4]
    assert all(sum(lengths[i] for i in batch) <= READ_TOKENS for batch in batches)
    assert [1] in batches  # options of several tokens have a pass of their own


def test_labels_of_real_prompts_belong_to_the_published_file():
    file = ROOT / "../shared/data/hh-harmless-base.sample.jsonl.gz"
    labels = [json.loads(line) for line in (ROOT / "tests/data/hh-topics.jsonl").read_text().splitlines()]
    topics = {topic.id for topic in load_constitution(ROOT / "constitutions/general.yaml").topics()}
    assert len({label["row"] for label in labels}) == 400
    assert {label["principle"] for label in labels} == {*topics, None}
    if not file.exists():
        pytest.skip("the sample of hh-rlhf is absent")
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        turns = [json.loads(line)["chosen"].split("\n\nAssistant:")[0].replace("\n\nHuman:", "").strip() for line in lines]
    for label in labels:
        assert hashlib.sha256(turns[label["row"]].encode()).hexdigest()[:16] == label["sha256"]
