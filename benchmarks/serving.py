"""What batching of concurrent requests saves: python benchmarks/serving.py

Requests to the engine of `charter serve`, so many under way at once, on the testbed's model. Counted in CPU seconds of the
process and not on the clock, so that whatever else runs on the machine does not decide it.
"""

import queue
import time

import torch

from charter.models.chat_template import encode_prompt
from charter.models.trunk import load_trunk
from charter.recipe.source import locate
from charter.records import Message
from charter.serving.engine import Drawn, Engine, Job

REQUESTS, TOKENS = 96, 64


def main() -> None:
    torch.set_num_threads(1)
    trunk = load_trunk(locate("package:charter.testbed/model", None))
    engine = Engine(trunk, max_rows=64)
    asked = [[Message(role="user", content=f"How can I mend lamp {i}?")] for i in range(REQUESTS)]
    prompts = [encode_prompt(trunk.tokenizer, one) for one in asked]
    print(f"{REQUESTS} requests, at most {TOKENS} tokens each")
    for at_once in (1, 4, 16, 64):
        events: queue.Queue[Drawn] = queue.Queue()
        jobs = iter([Job(prompt, TOKENS, events.put, seed=i) for i, prompt in enumerate(prompts)])
        started, written, left = time.process_time(), 0, REQUESTS
        engine.submit([next(jobs) for _ in range(at_once)])
        while left:
            event = events.get()
            written += 1
            if event.finish:
                left -= 1
                engine.submit([job for job in [next(jobs, None)] if job is not None])
        seconds = time.process_time() - started
        print(f"{at_once:4} at once: {written / seconds:7.0f} tokens a CPU second")
    engine.close()


if __name__ == "__main__":
    main()
