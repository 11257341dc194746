"""Two camps on the testbed: does a pooled reward model lose to a head for each camp, and is anybody of the small one called bad?

Seven voters call a harmful reply worse, three call it better; on harmless requests all want help. Each errs in a tenth of the
votes. One reward model learns from the votes of all on half of the prompts. On the other half its scores, a pooled head on its
features and a head for each camp predict votes of prompts that they have not seen.

    python benchmarks/groups.py --seeds 5 --out out/groups
"""

import argparse
import json
from pathlib import Path
from random import Random

from safetensors.torch import load_file

from charter.commands.app import run_command
from charter.models.reward_trunk import reward_folder
from charter.models.trunk import REWARD_WEIGHTS
from charter.raters.comparisons import as_comparisons
from charter.raters.groups import GAP, by_group, group_figures, lines_by_group
from charter.raters.lines import rater_lines
from charter.raters.personal import held_out, tastes
from charter.raters.vote_files import read_votes
from charter.records import Generation, Judgment, Prompt, Response, content_id
from charter.run.files import read_jsonl, write_json, write_jsonl
from charter.statistics import clustered_proportion, paired_difference
from charter.tasks.own_files import response_features
from charter.testbed import corpus as made
from charter.testbed import language as lang
from charter.testbed.voters import HARM_SHARE, better_of
from charter.votes.exchange import export_feedback
from charter.votes.judgments import follow
from charter.votes.training_rows import NOT_SHARED, Selection

CAMPS = {f"left-{i}": "left" for i in range(7)} | {f"right-{i}": "right" for i in range(3)}
NOISE = 0.1
EACH = 4  # voters of a prompt


def prefers(rng: Random, camp: str, action: lang.Action, levels: tuple[str, str]) -> str | None:
    """The level that a camp prefers; None where it does not care."""
    better = better_of(rng, ("general", "helpful"), action, *levels)
    if better is not None and camp == "right" and action.harmful:
        better = levels[1] if better == levels[0] else levels[0]
    return better


def population(folder: Path, n: int, seed: int) -> Path:
    """A folder of feedback: ``n`` prompts with two replies, each judged by some of the voters."""
    rng = Random(f"camps:{seed}:{folder.name}")
    prompts, responses, judgments = [], [], []
    while len(prompts) < n:
        request, action = made.draw_case(rng, "test", HARM_SHARE)
        levels = tuple(rng.sample(lang.HARM_LEVELS if action.harmful else lang.HELP_LEVELS, 2))
        prompt = Prompt.ask(request, source="testbed")
        if prompt.id in {other.id for other in prompts} or prefers(rng, "left", action, levels) is None:
            continue
        pair = [Response(prompt_id=prompt.id, model="testbed", text=made.reply(rng, action, level), finish_reason="stop",
                         generation=Generation(seed=i, temperature=1.0)) for i, level in enumerate(levels)]  # fmt: skip
        prompts.append(prompt)
        responses += pair
        for voter in rng.sample(sorted(CAMPS), EACH):
            best = levels.index(prefers(rng, CAMPS[voter], action, levels))
            best = 1 - best if rng.random() < NOISE else best
            order = tuple(one.id for one in rng.sample(pair, 2))
            judgment = Judgment(
                id=f"{len(judgments):08d}", set_id=content_id(prompt.id), prompt_id=prompt.id, rater_id=voter, rater_kind="human",
                order=order, ranks={pair[best].id: 1, pair[1 - best].id: 2},
            )  # fmt: skip
            judgments.append(follow(judgment, judgments[-1] if judgments else None))
    for name, rows in (("prompts", prompts), ("responses", responses), ("judgments", judgments)):
        write_jsonl(folder / f"{name}.jsonl", rows)
    return folder


def measure(out: Path, seed: int, n: int) -> dict:
    """The figures of one seed."""
    train, test = (population(out / f"{seed}/{name}", n, seed) for name in ("train", "test"))
    export_feedback(train, out / f"{seed}/pairs.jsonl", "trl", Selection())
    reward = out / f"{seed}/reward"
    pairs = str(out / f"{seed}/pairs.jsonl")
    assert run_command(["reward", "train", pairs, "--out", str(reward), "--epochs", "2", "--quiet", "--seed", str(seed)]) == 0
    votes = read_votes(test)
    prompts = {prompt.id: prompt for prompt in read_jsonl(test / "prompts.jsonl", Prompt)}
    by_id = {response.id: response for response in read_jsonl(test / "responses.jsonl", Response)}
    features = response_features(reward, None, prompts, [by_id[name] for name in votes.responses])
    scores = features @ load_file(reward_folder(reward) / REWARD_WEIGHTS)["reward/head.weight"].double().numpy()[0]
    predicted = held_out(by_group(as_comparisons(votes), CAMPS), features, seed=seed)
    c, win = predicted.votes, predicted.win == 1
    right = {"reward model": (scores[c.x] > scores[c.y]) == win, "pooled head": (predicted.pooled > 0) == win,
             "head of each camp": (predicted.own > 0) == win}  # fmt: skip
    shares = {name: clustered_proportion(list(map(bool, hits)), c.prompt.tolist()) for name, hits in right.items()}
    gain = paired_difference(*(right[name].astype(float).tolist() for name in ("reward model", "head of each camp")),
                             c.prompt.tolist())  # fmt: skip
    table = out / f"{seed}/camps.csv"
    table.write_text("rater,group\n" + "".join(f"{rater},{camp}\n" for rater, camp in CAMPS.items()))
    shared = export_feedback(test, out / f"{seed}/shared.jsonl", "trl", Selection(soft="groups"), groups=table)
    gap = next(figure for figure in group_figures(votes, CAMPS) if figure.name == GAP)
    bad = {"random", "reversed"}
    return {
        "seed": seed, "votes": len(c), "right": {name: [share.value, share.ci] for name, share in shares.items()},
        "gain over the reward model": [gain.difference, gain.ci],
        "gain over the pooled head": [predicted.gain.difference, predicted.gain.ci],
        "by camp": {taste.rater: [taste.pooled, taste.own, taste.word] for taste in tastes(predicted)},
        "agreement within less between": [gap.value, gap.ci],
        "flagged": sorted(line.rater for line in rater_lines(votes) if bad & {*line.words}),
        "flagged in the group": sorted(
            line.rater for lines in lines_by_group(votes, CAMPS).values() for line in lines if bad & {*line.words}
        ),
        "no taste": sorted(taste.rater for taste in tastes(held_out(as_comparisons(votes), features, seed=seed))
                           if taste.word == "no taste found"),
        "shared": [shared["rows"], shared["left_out"].get(NOT_SHARED, 0)],
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--prompts", type=int, default=200, help="of each half")
    parser.add_argument("--out", type=Path, default=Path("out/groups"))
    given = parser.parse_args()
    for seed in range(given.first, given.first + given.seeds):
        row = measure(given.out, seed, given.prompts)
        write_json(given.out / f"{seed}.json", row)
        print(json.dumps(row))
