"""A model of one person: from their votes a head on the run's reward model, and from that reward an adapter on its policy.

What is shared stays where the run has it: policy and reward model. What is private is in RUN/people/NAME: votes, head, and an
adapter for each update (the personal heads of Poddar et al. 2024 and Bose et al. 2025, as ``raters.personal`` fits them; RLOO
against the person's head, the KL being that to the model under the adapter).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from charter.errors import InputError
from charter.models.chat_template import encode_response
from charter.models.continued import start_adapter
from charter.models.formats.adapters import save_adapter
from charter.models.heads import Scorers, ScoreScale
from charter.models.load import PEOPLE, model_of_run, pick_device
from charter.models.packing import Tokens
from charter.models.reward_trunk import load_reward_model, reward_folder
from charter.models.trunk import REFERENCE, Trunk, load_trunk
from charter.raters.comparisons import Comparisons, Floats, Numbers, as_comparisons
from charter.raters.personal import MIN_VOTES, final_heads, held_out
from charter.raters.vote_files import find, read_votes, text_files
from charter.reading.pairs import IDENTICAL
from charter.records import Pair, Prompt, Response, content_id
from charter.run.files import HEAD_CARD, folder_name, read_json, read_jsonl, write_json, write_jsonl
from charter.run.hashes import derive_seed, file_hash, model_hash
from charter.run.run import Run, Stage
from charter.run.seals import MANIFEST
from charter.stages.rl.settings import RLOOSettings
from charter.statistics import paired_difference
from charter.tasks.own_files import features_of
from charter.training.methods.dpo import sequence_logprobs
from charter.training.methods.reward_model import pairs_that_differ
from charter.training.methods.rloo import train_rloo
from charter.training.rewards import RewardSum, response_length
from charter.training.rollouts import RewardModelReward

VOTES, UPDATE, ADAPTER = "votes.jsonl", "update-", "adapter"
REPEATED = "repeated; the last vote on the two answers counts"
HELD_OUT = 0.25
"""Share of the prompts whose votes only measure. A hash of the prompt decides, so that no update learns from a vote that an
earlier or later one is measured on."""


def update_person(
    run: Path, name: str, file: Path, settings: RLOOSettings, *, model: str = "policy", prompts: Path | None = None,
    responses: Path | None = None, seed: int = 0, quiet: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Take a person's votes from a file or folder of judgments into RUN/people/NAME, fit the head and train the adapter on from
    where it is; the figures on held-out votes, beside the run's policy. ``settings`` need lora; their reward is the person's
    head. ``model``: the model of the run under the adapter, "policy" or "sft".

    InputError where the run lacks that model, its policy or a single reward model, or the person has too few votes.
    """
    policy, under, reward = model_of_run(run, "policy"), model_of_run(run, model), reward_folder(run)
    folder = run / PEOPLE / folder_name(name)
    stored = list(read_jsonl(folder / VOTES, Pair)) if (folder / VOTES).is_file() else []
    pairs, left_out = votes_of_person(file, name, run, prompts, responses, stored)
    sides = tuple([pair for pair in pairs if is_held_out(pair) == side] for side in (False, True))
    if len(sides[0]) < MIN_VOTES:
        raise InputError(f"{name} has {len(pairs)} votes that decide, {len(sides[1])} of them held out; at least {MIN_VOTES} are "
                         "needed to learn from", file=file)  # fmt: skip
    counts = {"votes": len(pairs), "new": sum(pair not in stored for pair in pairs), "learned_from": len(sides[0]),
              "held_out": len(sides[1]), "left_out": left_out, "folder": str(folder)}  # fmt: skip
    with Run(folder, seed=seed, quiet=quiet) as person:
        card = read_json(folder / HEAD_CARD) or {"rater": name}
        write_json(folder / HEAD_CARD, card)  # from here on `charter forget` knows the folder
        write_jsonl(folder / VOTES, pairs)
        inputs = {"votes": content_id([pair.model_dump(mode="json") for pair in pairs]), "policy": model_hash(under),
                  "reward": model_hash(str(reward))}  # fmt: skip
        number, last = last_update(folder)
        before = folder / f"{UPDATE}{number}" / ADAPTER
        resumes = number > 0 and last["inputs"]["policy"] == inputs["policy"]
        start = {"start": file_hash(before)} if resumes else {}
        stage = person.stage(f"{UPDATE}{number + 1}", settings, inputs | start, [__name__])
        described = {**last, "inputs": {key: value for key, value in last.get("inputs", {}).items() if key != "start"}}
        changed = (
            any(described.get(key) != stage.description[key] for key in ("seed", "settings")) or described["inputs"] != inputs
        )
        if changed:
            person.say(
                f"{name}: {len(pairs)} votes, {counts['new']} of them new; "
                + (f"resumes from update {number}" if resumes else f"starts from the {model} of the run")
            )
            with stage:
                if not stage.done:
                    stage.finish(train_update(stage, settings, sides, policy, under, reward, before if resumes else None))
            number, last = number + 1, {"result": stage.result}
        result = dict(last["result"])
        write_json(folder / HEAD_CARD, card | result.pop("card") | {
            "model": model, "policy": inputs["policy"], "votes": len(pairs),
            "adapter": f"{UPDATE}{number}/{ADAPTER}"})  # fmt: skip
    return {**result, **counts, "update": number, "trained": changed, "resumed": changed and resumes, "model": model}


def last_update(folder: Path) -> tuple[int, dict[str, Any]]:
    """Number and manifest of the last finished update in a person's folder; 0 and nothing before the first."""
    number, last = 0, dict[str, Any]()
    while "result" in (manifest := read_json(folder / f"{UPDATE}{number + 1}" / MANIFEST) or {}):
        number, last = number + 1, manifest
    return number, last


def votes_of_person(
    file: Path, name: str, run: Path, prompts: Path | None, responses: Path | None, stored: Sequence[Pair] = ()
) -> tuple[list[Pair], dict[str, int]]:
    """The ``stored`` votes of a person and those in a file or folder of judgments that decide, the last one on two answers: a tie
    takes an earlier vote back. The others of the file by reason. InputError if it has no vote of the person, or a text is
    missing."""
    prompt_file, response_file = text_files(file, prompts, responses, run)
    comparisons = as_comparisons(read_votes(find(file, "judgments.jsonl"), response_file, models=True))
    if name not in comparisons.raters:
        raise InputError(f"no vote of {name!r}, but of {len(comparisons.raters)} other raters; give the name as the file has it",
                         file=file)  # fmt: skip
    mine = comparisons.take(comparisons.rater == comparisons.raters.index(name))
    texts = {response.id: response for response in read_jsonl(response_file, Response)}
    asked = {prompt.id: prompt for prompt in read_jsonl(prompt_file, Prompt)}
    pairs, decided, left_out = {votes_key(pair): pair for pair in stored}, set[object](), Counter[str]()
    for x, y, outcome in zip(mine.x, mine.y, mine.outcome, strict=True):
        better, worse = (texts[mine.items[i]] for i in ((x, y) if outcome > 0 else (y, x)))
        prompt = asked.get(better.prompt_id)
        if prompt is None:
            raise InputError(f"the prompt {better.prompt_id!r} is missing; name the file with all prompts with --prompts",
                             file=prompt_file)  # fmt: skip
        opening = next((message for message in prompt.messages if message.role == "user"), prompt.messages[0])
        pair = Pair(prompt=prompt, chosen=better.text, rejected=worse.text, group_id=Prompt.ask(opening.content).id)
        key = votes_key(pair)
        left_out[REPEATED] += key in decided
        if outcome and better.text != worse.text:
            pairs[key] = pair
            decided.add(key)
        else:
            left_out[IDENTICAL if outcome else "tie"] += 1
            pairs.pop(key, None)
            decided.discard(key)
    return list(pairs.values()), dict(+left_out)


def votes_key(pair: Pair) -> object:
    """What a later vote replaces: prompt and the two answers, whichever was chosen."""
    return pair.prompt.id, frozenset((pair.chosen, pair.rejected))


def is_held_out(pair: Pair) -> bool:
    return derive_seed("held out", pair.group_id) < HELD_OUT * 2**63


def train_update(
    stage: Stage, settings: RLOOSettings, sides: Sequence[Sequence[Pair]], policy: str, under: str, reward: Path,
    start: Path | None,
) -> dict[str, Any]:  # fmt: skip
    """Fit the head on the first side of the votes, train the adapter on the model ``under`` it against that, measure both on the
    second side, beside the run's ``policy``; leaves adapter/."""
    train, test = sides
    scorer, scorers = load_reward_model(reward, device=pick_device("auto"))
    if len(scorers.roles) != 1:
        raise InputError("a personal head needs a single reward model; this is an ensemble", file=reward)
    weight = scorer.heads[scorers.roles[0]].weight
    common = np.append(weight.detach()[0].double().cpu().numpy(), 0.0)
    read = [answer_features(scorer, scorers.roles[0], side) for side in sides]
    unit = length_unit(read[0][0])
    features = [rows * unit for rows, _ in read]
    head = personal_head(train, features[0], common)
    scores = features[0] @ head
    scale = ScoreScale(float(scores.mean()), float(scores.std()) or 1.0)
    with torch.no_grad():
        weight.copy_(torch.tensor(head[:-1], dtype=weight.dtype)[None])

    trunk = load_trunk(under, device=pick_device("auto"), lora=settings.lora, seed=stage.run.seed, say=stage.run.say)
    trunk.add_role("policy")
    if start is not None:
        start_adapter(trunk, "policy", start)
        settings = settings.model_copy(update={"from_policy": str(start)})  # the first KL is then not 0
    source = RewardModelReward(scorer, Scorers(scorers.roles, (scale,)), settings.tokens_per_micro_batch)
    prompts = list({pair.prompt.id: pair.prompt for pair in train}.values())
    by_token = float(head[-1] * unit[-1] / scale.std)
    train_rloo(trunk, prompts, RewardSum({"person": (1.0, source), "length": (by_token, response_length)}), settings, stage)
    save_adapter(trunk.adapters, "policy", trunk.tokenizer, stage.path(ADAPTER), trunk.path)

    by_head = [[bool(a > b) for a, b in (features[1] @ weights).reshape(-1, 2)] for weights in (common, head)]
    differ, rows, _ = pairs_that_differ(trunk, test, trunk.room)
    in_turn = [row for both in rows for row in both]
    shared = trunk if under == policy else load_trunk(policy, device=pick_device("auto"))
    by_policy = [prefers(on, role, in_turn, settings) for on, role in ((shared, REFERENCE), (trunk, "policy"))]
    return {
        "head": shares(by_head, test), "policy": shares(by_policy, differ), "kl": stage.metrics()[-1]["kl"],
        "cut": sum(cut for _, cut in read), "cut_to_equal": len(test) - len(differ),
        "card": {"weights": (head * unit).tolist(), "mean": scale.mean, "std": scale.std, "reward": str(reward)},
    }  # fmt: skip


def answer_features(scorer: Trunk, role: str, pairs: Sequence[Pair]) -> tuple[Floats, int]:
    """(2 N, H + 1): of chosen and rejected in turn the last hidden state and the length in tokens; and how many texts were cut
    to the context of the reward model. A taste for length is common, and the state may say little about length."""
    answers = [(pair.prompt, text) for pair in pairs for text in (pair.chosen, pair.rejected)]
    states, cut = features_of(scorer, role, answers, scorer.room)
    lengths = [len(encode_response(scorer.tokenizer, text)) for _, text in answers]
    return np.column_stack([states, lengths]), cut


def length_unit(features: Floats) -> Floats:
    """(H + 1,) factors of features that give the length the spread of the states' widest direction; the states' are 1."""
    centred = features - features.mean(axis=0)
    widest = np.linalg.svd(centred[:, :-1], compute_uv=False)[0] / np.sqrt(len(features))
    return np.append(np.ones(features.shape[1] - 1), widest / max(float(centred[:, -1].std()), 1e-12))


def personal_head(pairs: Sequence[Pair], features: Floats, common: Floats) -> Floats:
    """Weights (H + 1,): the common ones at the person's scale, and what the votes add. ``features``: as of
    :func:`answer_features`, times :func:`length_unit`."""
    n, prompts = len(pairs), Numbers()
    items = tuple(map(str, range(2 * n)))
    nobody = np.zeros(n, dtype=np.int64)
    chosen = np.arange(0, 2 * n, 2)
    by_prompt = np.array([prompts(pair.group_id) for pair in pairs])
    votes = Comparisons(items, ("",), chosen, chosen + 1, np.ones(n, dtype=np.int64), nobody, nobody, by_prompt, chosen // 2,
                        np.ones(n))  # fmt: skip
    return final_heads(held_out(votes, features, common=common), features, common)[""]


def prefers(trunk: Trunk, role: str, rows: Sequence[Tokens], settings: RLOOSettings) -> list[bool]:
    """Whether a role gives the chosen answer more probability than the rejected one, of rows in turn."""
    sums = sequence_logprobs(trunk, role, rows, settings.tokens_per_micro_batch).view(-1, 2)
    return [bool(chosen > rejected) for chosen, rejected in sums]


def shares(right: Sequence[Sequence[bool]], pairs: Sequence[Pair]) -> dict[str, Any]:
    """Shares of held-out votes that the common and the personal model are right about, and the difference, paired and clustered
    by prompt; None without votes."""
    if not pairs:
        return {"common": None, "person": None, "difference": None, "ci": None, "n": 0}
    gain = paired_difference(right[0], right[1], [pair.group_id for pair in pairs])
    common, person = (sum(side) / len(side) for side in right)
    return {"common": common, "person": person, "difference": gain.difference, "ci": gain.ci, "n": len(pairs)}
