"""Three people with planted tastes on the testbed: does each prefer the answers of their own model?

Reward model and policy are those of a finished run. Each person votes on pairs of replies to 480 held-out requests and errs in a
tenth of the votes. The head is measured on the votes that `charter person` holds out; the policies answer other held-out
requests, and the taste itself, without errors, compares their answers.

    for seed in 0 1 2 3 4; do charter run demo --set seed=$seed --out out/demo/$seed; done
    python benchmarks/people.py out/demo/* --out out/people
"""

import argparse
import json
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from random import Random

from charter.measuring.models import load_writer
from charter.models.load import model_of_run
from charter.models.sampling.sampler import LocalSampler
from charter.recipe.files import as_settings
from charter.records import Generation, Judgment, Prompt, Response, content_id
from charter.run.files import write_json, write_jsonl
from charter.run.hashes import derive_seed
from charter.stages.rl.settings import RLOOSettings
from charter.statistics import paired_difference
from charter.tasks.person_model import update_person
from charter.testbed import corpus as made
from charter.testbed import language as lang
from charter.testbed import oracle
from charter.testbed.voters import HARM_SHARE
from charter.votes.judgments import follow

NOISE, VOTES, ANSWERS, TOKENS = 0.1, 480, 120, 64


def told(prompt: str, reply: str) -> float:
    """How much a reply tells, from 0 to 4; a reply that the oracle cannot read tells less than nothing."""
    read = oracle.read(prompt, reply)
    if read["refusal"] is None:
        return -1.0
    if read["helpfulness_level"] is not None:
        return float(read["helpfulness_level"])
    return 4.0 - read["gold"] if read["harmful"] else 2.0 if read["refusal"] == "engaged" else 1.0


def brief(_: str, reply: str) -> float:
    return -float(lang.pieces(reply))


def wordy(_: str, reply: str) -> float:
    return float(lang.pieces(reply))


TASTES: dict[str, Callable[[str, str], float]] = {"candid": told, "brief": brief, "wordy": wordy}


def requests(seed: str, use: str) -> Iterator[tuple[Prompt, lang.Action]]:
    """Held-out requests, each once."""
    rng, seen = Random(f"people:{seed}:{use}"), set()
    for _ in count():
        request, action = made.draw_case(rng, "test", HARM_SHARE)
        prompt = Prompt.ask(request, source="testbed")
        if prompt.id not in seen:
            seen.add(prompt.id)
            yield prompt, action


def vote(folder: Path, seed: str, person: str) -> Path:
    """A folder of feedback: votes of a person on two replies of different levels."""
    rng = Random(f"people:{seed}:{person}")
    prompts, responses, judgments = [], [], []
    for prompt, action in requests(seed, "votes"):
        levels = rng.sample(lang.HARM_LEVELS if action.harmful else lang.HELP_LEVELS, 2)
        texts = [made.reply(rng, action, level) for level in levels]
        values = [TASTES[person](prompt.messages[-1].content, text) for text in texts]
        if values[0] == values[1]:
            continue
        pair = [Response(prompt_id=prompt.id, model="testbed", text=text, finish_reason="stop",
                         generation=Generation(seed=i, temperature=1.0)) for i, text in enumerate(texts)]  # fmt: skip
        best = int(values[1] > values[0]) ^ int(rng.random() < NOISE)
        judgment = Judgment(
            id=f"{len(judgments):08d}", set_id=content_id(prompt.id), prompt_id=prompt.id, rater_id=person, rater_kind="human",
            order=tuple(one.id for one in rng.sample(pair, 2)), ranks={pair[best].id: 1, pair[1 - best].id: 2},
        )  # fmt: skip
        prompts.append(prompt)
        responses += pair
        judgments.append(follow(judgment, judgments[-1] if judgments else None))
        if len(judgments) == VOTES:
            break
    for name, rows in (("prompts", prompts), ("responses", responses), ("judgments", judgments)):
        write_jsonl(folder / f"{name}.jsonl", rows)
    return folder


def answers(model: str, seed: str) -> list[tuple[str, str]]:
    """Requests that nobody voted on, each with an answer of a model."""
    prompts = [prompt for prompt, _ in islice(requests(seed, "answers"), ANSWERS)]
    seeds = [[derive_seed("answer", seed, prompt.id)] for prompt in prompts]
    samples = LocalSampler(load_writer(model, "float32"), "model").generate(
        [prompt.messages for prompt in prompts], seeds, temperature=1.0, max_new_tokens=TOKENS)  # fmt: skip
    return [(prompt.messages[-1].content, sample[0].text) for prompt, sample in zip(prompts, samples, strict=True)]


def preferred(person: str, common: list[tuple[str, str]], theirs: list[tuple[str, str]]) -> dict:
    """How often a taste prefers the personal answer, the common one, and the difference."""
    values = [[TASTES[person](*one) for one in arm] for arm in (common, theirs)]
    wins = [[float(a > b) for a, b in zip(x, y, strict=True)] for x, y in (values, values[::-1])]
    gain = paired_difference(*wins, [prompt for prompt, _ in common])
    return {"personal": sum(wins[1]) / ANSWERS, "common": sum(wins[0]) / ANSWERS, "difference": gain.difference, "ci": gain.ci}


def measure(run: Path, out: Path, steps: int, model: str) -> list[dict]:
    """The rows of one run: each person after each update."""
    seed, rows = run.name, []
    common = answers(model_of_run(run, "policy"), seed)
    values = {"method": "rloo", "steps": steps, "learning_rate": 1e-3, "kl_coef": 0.05, "lora": {}, "max_new_tokens": TOKENS,
              "prompts_per_step": 16}  # fmt: skip
    for person in TASTES:
        votes = vote(out / f"{seed}/votes/{person}", seed, person)
        result = update_person(run, person, votes, as_settings(values, RLOOSettings, "person"), model=model, quiet=True)
        theirs = answers(model_of_run(run, f"person {person}"), seed)
        rows.append({"seed": seed, "person": person, "answers": preferred(person, common, theirs), **result})
        print(json.dumps(rows[-1]), flush=True)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="finished runs, which get the models")
    parser.add_argument("--steps", type=int, default=15, help="updates of the policy")
    parser.add_argument("--model", default="policy", help="model of the run under the adapters: policy or sft")
    parser.add_argument("--out", type=Path, default=Path("out/people"))
    given = parser.parse_args()
    for run in given.runs:
        write_json(given.out / f"{run.name}.json", measure(run, given.out, given.steps, given.model))
