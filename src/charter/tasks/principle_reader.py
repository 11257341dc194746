"""Training a reward model that reads the principle, on a user's file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from charter.constitution.constitution import Constitution, load_constitution
from charter.errors import InputError
from charter.judging.judge import YES_NO, response_question, yes_over_no
from charter.models.sampling.sampler import LocalSampler, Sampler, conversation_text, fill
from charter.models.trunk import Trunk, load_trunk
from charter.reading.pairs import read_pairs, split_pairs
from charter.records import Pair
from charter.run.hashes import file_hash
from charter.run.run import Stage
from charter.stages.reward_model.run import share_with_interval
from charter.stages.reward_model.settings import RewardModelSettings
from charter.tasks.own_files import Learned, Start, check_sides, train_and_measure
from charter.training.methods.principle_reader import ReadPair, answers_to, train_principle_reader


def reader_from_file(
    file: Path, constitution: Path, held_out: str | None, out: Path, settings: RewardModelSettings, start: Start
) -> dict[str, Any]:
    """Train a reader on the pairs of a file that are labelled with a principle, and write ``out``/metrics.json: accuracy on
    held-out dialogues with a clustered 95% interval, before and after, by principle, and on the principle ``held_out``, none of
    whose pairs is trained on. InputError if too few pairs have a principle, or ``held_out`` has none."""
    rules, loaded = load_constitution(constitution), read_pairs(file)

    def learn(trunk: Trunk, stage: Stage, room: int) -> Learned:
        pairs, left_out = readable_pairs(trunk, loaded.pairs, rules, room, held_out)
        excluded = loaded.excluded | dict(+left_out)
        seen = [pair for pair in pairs if pair.pair.principle != held_out]
        sides = split_pairs([pair.pair for pair in seen], test_fraction=settings.test_fraction, seed=start.seed)
        train, test = (readable_pairs(trunk, side, rules, room)[0] for side in sides)
        check_sides(file, f"pairs (left out: {excluded or 'none'})", len(seen), len(train), len(test))
        unseen = [pair for pair in pairs if pair.pair.principle == held_out]
        if held_out is not None and not unseen:
            raise InputError(f"no usable pair has the principle {held_out!r}; name one of the file", field="--hold-out")
        base = LocalSampler(trunk, "base")
        before = [accuracy_of(base, side) for side in (test, unseen)]
        train_principle_reader(trunk, train, settings, stage)

        def measured() -> dict[str, Any]:
            reader = LocalSampler(trunk, "reader", role="reward")
            by_principle = {
                name: accuracy_of(reader, [pair for pair in test if pair.pair.principle == name])
                for name in sorted({str(pair.pair.principle) for pair in test})
            }
            held = {"principle": held_out, **accuracy_of(reader, unseen), "before": before[1]} if unseen else None
            return {**accuracy_of(reader, test), "before": before[0], "groups": by_principle, "held_out": held, "cut": {},
                    "train_pairs": len(train), "rows": loaded.n_rows, "excluded": excluded}  # fmt: skip

        return lambda folder: trunk.save_language_model("reward", folder), measured

    inputs = {"constitution": file_hash(constitution), "held out": held_out or ""}
    return train_and_measure(file, out, "pairs", settings, start, learn, load=load_trunk, inputs=inputs)


def readable_pairs(
    trunk: Trunk, pairs: Sequence[Pair], rules: Constitution, room: int, held_out: str | None = None
) -> tuple[list[ReadPair], Counter[str]]:  # fmt: skip
    """The pairs with a principle of the constitution as questions, and the others by reason. A pair that several principles
    decided, ids with commas, is a question about each, or about ``held_out`` alone if it is one. A question is never cut."""
    by_id = {p.id: p for p in rules.principles if p.preference is not None or p.question is not None}
    usable: list[ReadPair] = []
    left_out: Counter[str] = Counter()
    questions: list[Pair] = []
    for pair in pairs:
        names = dict.fromkeys(name.strip() for name in (pair.principle or "").split(","))
        if held_out is not None and held_out in names:
            left_out["principle beside the held-out one on a pair"] += len(names) - 1
            names = {held_out: None}
        questions += [pair.model_copy(update={"principle": name}) for name in names]
    for pair in questions:
        if (principle := by_id.get(pair.principle or "")) is None:
            left_out["pair without a principle of the constitution"] += 1
            continue
        conversation, question = conversation_text(pair.prompt.messages), response_question(principle)
        chosen, rejected = (fill(YES_NO, conversation=conversation, response=text, question=question)
                            for text in (pair.chosen, pair.rejected))  # fmt: skip
        if max(len(row) for text in (chosen, rejected) for row in answers_to(trunk, text)) > room:
            left_out[f"pair whose question has more than {room} tokens"] += 1
            continue
        usable.append(ReadPair(pair, chosen, rejected, principle.question is not None and principle.good_answer == "no"))
    return usable, left_out


def right_of(sampler: Sampler, pairs: Sequence[ReadPair]) -> list[float]:
    """1 where the chosen response of a pair has the better margin, one half where both have the same."""
    margins = yes_over_no(sampler, [text for pair in pairs for text in (pair.chosen, pair.rejected)])
    apart = [(a - b) * (-1 if pair.by_no else 1) for pair, a, b in zip(pairs, margins[0::2], margins[1::2], strict=True)]
    return [0.5 if difference == 0 else float(difference > 0) for difference in apart]


def accuracy_of(sampler: Sampler, pairs: Sequence[ReadPair]) -> dict[str, Any]:
    """Accuracy with its interval, clustered by dialogue; a tie has no better response."""
    pairs = [pair for pair in pairs if pair.pair.weight != 0.5]
    return share_with_interval(right_of(sampler, pairs), [pair.pair.group_id for pair in pairs])
