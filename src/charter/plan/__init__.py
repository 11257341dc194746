"""Tokens, memory and time of a recipe before anything heavy loads: config.json, safetensors headers, prompts, tokenizer.

Counts of prompts, rows and steps are those of the run, to within a few. Lengths are bounds: every sampled text is taken to
be as long as its settings allow, every comparison to make a pair. So tokens and memory are what a run needs at most; time
is a rough estimate, and the output names its assumptions.
The figures of each stage are in `stages/STAGE/plan.py`.
"""
