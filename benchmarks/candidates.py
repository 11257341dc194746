"""How much K responses to one prompt differ: sampled by chance, and each under another stance (`feedback.sampling: diverse`).

python benchmarks/candidates.py MODEL --prompts 12 --k 3
"""

import argparse
import json
from pathlib import Path

from charter.constitution.revise import respond
from charter.models.sampling.sampler import LocalSampler
from charter.models.trunk import load_trunk
from charter.recipe.files import as_settings
from charter.recipe.source import locate
from charter.records import Prompt
from charter.run.files import read_jsonl
from charter.stages.feedback.run import check_system_turn, spread, stances_of
from charter.stages.feedback.settings import FeedbackSettings
from charter.statistics import distinct_pairs, paired_difference

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--k", type=int, default=3)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--tokens", type=int, default=48)
    given = parser.parse_args()
    sampler = LocalSampler(load_trunk(given.model), "model")
    file = Path(locate("package:charter.testbed/data/prompts.jsonl", Path.cwd()))
    prompts = [prompt for prompt in read_jsonl(file, Prompt) if "benign" in prompt.tags][: given.prompts]
    values = []
    for way in ("plain", "diverse"):
        changes = {"sampling": way, "responses_per_prompt": given.k, "max_new_tokens": given.tokens,
                   "temperature": given.temperature}  # fmt: skip
        settings = as_settings(changes, FeedbackSettings, "feedback")
        stances = stances_of(settings)
        check_system_turn(sampler, stances)
        groups = respond(sampler, prompts, settings, seed=0, what="feedback", k=given.k, stances=stances)
        values.append([distinct_pairs([response.text for response in group]) for group in groups])
        print(json.dumps(spread(groups, settings)), [response.text for response in groups[0]])
    gain = paired_difference(*values, [prompt.id for prompt in prompts])
    print(json.dumps({"difference": gain.difference, "ci": gain.ci}))
