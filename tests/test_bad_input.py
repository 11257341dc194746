"""Whatever is wrong with the input: one line that names it, exit code 2, and nothing half-written left behind."""

from __future__ import annotations

import gzip
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from charter.commands.app import run_command
from conftest import CONSTITUTION

CONSTITUTION_YAML = yaml.safe_dump(CONSTITUTION)
PROMPTS = "".join(json.dumps({"prompt": f"How can I break lamp {i}?", "tags": ["red_team"]}) + "\n" for i in range(6))
PAIRS = "".join(json.dumps({"prompt": f"Lamp {i}?", "chosen": "No.", "rejected": "Yes."}) + "\n" for i in range(12))
RECIPE = {
    "model": "model", "constitution": "constitution.yaml", "precision": "float32", "device": "cpu",
    "prompts": {"files": ["prompts.jsonl"]}, "rl": {"method": "rloo"}, "evaluation": {"scorer": "refusal-words"},
}  # fmt: skip
GOOD = {"constitution.yaml": CONSTITUTION_YAML, "prompts.jsonl": PROMPTS, "pairs.jsonl": PAIRS}
TEN_MB = "x" * 10 * 2**20
# Where a run stopped, so that it can go on: an empty lock and the manifest of a stage without a result.
KEPT = {".lock", ".timing.json", "manifest.json"}


@dataclass(frozen=True)
class Case:
    """A command line, run in a folder with the good files and these, and the words its one line must hold."""

    name: str
    command: str
    says: tuple[str, ...]
    files: dict[str, str | bytes] = field(default_factory=dict)
    needs: str | None = None

    def __str__(self) -> str:
        return self.name


def recipe(**changes: object) -> str:
    return yaml.safe_dump({**RECIPE, **changes}, allow_unicode=True)


def run_case(name: str, *says: str, files: dict[str, str | bytes] | None = None, **changes: object) -> Case:
    """A recipe that differs from a good one in these keys; run reads all of it before anything loads."""
    return Case(name, "run --quiet recipe.yaml --out out", says, {"recipe.yaml": recipe(**changes), **(files or {})})


def set_case(name: str, assignment: str, *says: str) -> Case:
    return Case(name, f"run --quiet recipe.yaml --out out --set {shlex.quote(assignment)}", says, {"recipe.yaml": recipe()})


def import_case(name: str, file: str, content: str | bytes, *says: str) -> Case:
    return Case(name, f"prompts import {file} --out out.jsonl", (file, *says), {file: content})


def constitution_case(name: str, content: str | bytes, *says: str) -> Case:
    return Case(name, "constitution check c.yaml", ("c.yaml", *says), {"c.yaml": content})


def published_case(name: str, file: str, content: str | bytes, *says: str) -> Case:
    return Case(name, f"constitution import {file} --out out.yaml", (file, *says), {file: content})


def pairs_case(name: str, content: str | bytes, *says: str, file: str = "p.jsonl") -> Case:
    return Case(name, f"reward train --quiet {file} --out out --model model", (file, *says), {file: content})


def line(**values: object) -> str:
    return json.dumps(values) + "\n"


CASES = [
    # -- the command line itself
    Case("no such command", "fly", ("fly",)),
    Case("no such option", "prompts import prompts.jsonl --fast", ("--fast",)),
    Case("an argument is missing", "prompts import --out out.jsonl", ("argument", "file")),
    Case("an option is missing", "prompts import prompts.jsonl", ("--out",)),
    Case("one argument too many", "constitution check constitution.yaml more", ("more",)),
    # -- recipes
    Case("no such recipe file", "run none.yaml", ("none.yaml", "no such file")),
    Case("no such shipped recipe", "run dmeo", ("dmeo", "demo")),
    Case("a recipe that is a folder", "run folder.yaml", ("folder.yaml", "is a folder"), {"folder.yaml/x": ""}),
    Case("a recipe with an empty name", "run ''", ("is a folder",)),
    Case("an empty recipe", "run r.yaml", ("r.yaml", "mapping"), {"r.yaml": ""}),
    Case("a recipe that is a list", "run r.yaml", ("r.yaml", "list"), {"r.yaml": "- a\n- b\n"}),
    Case("broken YAML", "run r.yaml", ("r.yaml", "line 3"), {"r.yaml": "model: x\nrl: [1,\n"}),
    Case("YAML with a tab", "run r.yaml", ("r.yaml", "line 2"), {"r.yaml": "rl:\n\tsteps: 1\n"}),
    Case("a number that YAML reads as octal", "run r.yaml", ("r.yaml", "seed", "'010'"), {"r.yaml": recipe() + "seed: 010\n"}),
    Case("a key given twice", "run r.yaml", ("r.yaml", "line 2", "seed", "duplicate"), {"r.yaml": "seed: 1\nseed: 2\n"}),
    Case("YAML that is not UTF-8", "run r.yaml", ("r.yaml", "UTF-8"), {"r.yaml": b"title: \xff\n"}),
    Case("a NUL byte in a recipe", "run r.yaml", ("r.yaml",), {"r.yaml": b"title: a\x00b\n"}),
    Case("a date that is none", "run r.yaml", ("r.yaml", "YAML"), {"r.yaml": "title: 2024-99-99\n"}),
    Case("a tag that its value does not fit", "run r.yaml", ("r.yaml", "YAML"), {"r.yaml": "title: !!map [a]\n"}),
    Case("a tag that would run code", "run r.yaml", ("r.yaml", "line 1"),
         {"r.yaml": "a: !!python/object:os.system x\n"}),
    Case("a recipe nested without end", "run r.yaml", ("r.yaml", "deeply"), {"r.yaml": "a: " + "[" * 5000}),
    Case("a recipe with a line of 10 MB", "run r.yaml", ("r.yaml", "MiB"), {"r.yaml": "title: " + TEN_MB}),
    Case("a key that is no text", "run r.yaml", ("r.yaml", "7"), {"r.yaml": "7: 7\n" + recipe()}),
    run_case("an unknown key", "recipe.yaml", "evaluaton", "did you mean 'evaluation'", evaluaton={}),
    run_case("an unknown key in a stage", "recipe.yaml", "sft.epoch", "did you mean 'epochs'", sft={"epoch": 1}),
    run_case("an unknown key in the method", "rl.stpes", "did you mean 'steps'", rl={"method": "ppo", "stpes": 1}),
    run_case("a key of the other method", "rl.clip_coef", "unknown", rl={"method": "rloo", "clip_coef": 0.2}),
    run_case("an unknown key of an adapter", "rl.lora.rnak", "did you mean 'rank'",
             rl={"method": "ppo", "lora": {"rnak": 2}}),
    run_case("a key that is like no other", "recipe.yaml", "zebra", "known keys", zebra=1),
    run_case("the name of a method as a key", "ppo", "unknown key", ppo={}),
    run_case("a method inside a method", "rl.ppo", "unknown key", rl={"method": "rloo", "ppo": {}}),
    run_case("no such method", "rl", "dpoo", rl={"method": "dpoo"}),
    run_case("a number where a mapping belongs", "sft", "5", sft=5),
    run_case("a text where a list belongs", "prompts.files", prompts={"files": "prompts.jsonl"}),
    run_case("no prompt file", "prompts.files", prompts={"files": []}),
    run_case("a negative number", "rl.steps", "-3", rl={"method": "rloo", "steps": -3}),
    run_case("half a step", "rl.steps", "1.5", rl={"method": "rloo", "steps": 1.5}),
    run_case("yes for a number", "sft.epochs", "True", sft={"epochs": True}),
    run_case("no for a share", "gates.min_judge_accuracy", "False", gates={"min_judge_accuracy": False}),
    run_case("a prompt of two kinds", "prompts.jsonl", "is tagged red_team and benign; keep one",
             prompts={"files": ["prompts.jsonl"], "tags": ["red_team", "benign"]}),
    run_case("one sample per prompt for GRPO", "rl.samples_per_prompt", rl={"method": "grpo", "samples_per_prompt": 1}),
    run_case("more updates than responses", "minibatches is 9", "8 responses",
             rl={"method": "ppo", "prompts_per_step": 4, "samples_per_prompt": 2, "minibatches": 9}),
    run_case("k1 in the loss", "rl.kl_estimator", "weighted_k3", rl={"method": "grpo", "kl_estimator": "k1"}),
    run_case("an option that the loss does not read", "gamma is read by simpo alone", rl={"method": "dpo", "gamma": 0.5}),
    run_case("a robust loss without a share of wrong labels", "label_smoothing", rl={"method": "dpo", "loss": "robust"}),
    run_case("a part of the reward without a source", "reward.fun: the source is missing",
             rl={"reward": {"fun": {}}}),
    run_case("a rule that does not exist", "rl.reward.fun.source", "cannot import 'nowhere'",
             rl={"reward": {"fun": {"source": "python:nowhere:nothing"}}}),
    run_case("a classifier without a label", "rl.reward.fun.source", "FOLDER:LABEL",
             rl={"reward": {"fun": {"source": "classifier:somewhere"}}}),
    run_case("a reward without parts", "rl.reward", rl={"reward": {}}),
    run_case("a cost that is no part", "cost.part", "name one of", rl={"cost": {"part": "harm"}}),
    run_case("one sample per prompt for RLOO", "rl.samples_per_prompt", rl={"method": "rloo", "samples_per_prompt": 1}),
    run_case("a share above one", "gates.min_base_harm", "1.5", gates={"min_base_harm": 1.5}),
    run_case("nothing held out", "prompts.test_fraction", prompts={"files": ["prompts.jsonl"], "test_fraction": 0}),
    run_case("neither yes nor no", "gates.override", "perhaps", gates={"override": "perhaps"}),
    run_case("a precision that does not exist", "precision", "float8", precision="float8"),
    run_case("a scorer that does not exist", "evaluation.scorer", evaluation={"scorer": "python:charter.nowhere:f"}),
    run_case("a scorer of no known form", "evaluation.scorer", evaluation={"scorer": "me"}),
    run_case("a scorer with an empty name", "evaluation.scorer", evaluation={"scorer": "python:"}),
    run_case("a package that does not exist", "nowhere_at_all", model="package:nowhere_at_all/model"),
    run_case("a package without a name", "package:", model="package:"),
    run_case("a user that does not exist", "~nobody-by-this-name", constitution="~nobody-by-this-name/c.yaml"),
    run_case("a missing constitution", "none.yaml", "constitution", constitution="none.yaml"),
    run_case("a NUL in a file name", "constitution", constitution="a\0b.yaml"),
    run_case("a missing prompt file", "none.jsonl", "prompts.files", prompts={"files": ["prompts.jsonl", "none.jsonl"]}),
    run_case("missing worked examples", "shots.yaml", "revise.few_shots", revise={"few_shots": "shots.yaml"}),
    run_case("missing labelled pairs", "known.jsonl", "labelled_pairs", feedback={"labelled_pairs": "known.jsonl"}),
    run_case("a constitution that breaks", "constitution.yaml", "line 2", files={"constitution.yaml": "title: [\n"}),
    run_case("prompts that break", "prompts.jsonl", "line 2", files={"prompts.jsonl": line(prompt="a") + "{\n"}),
    run_case("no prompt in the file", "prompts.jsonl", "prompts are missing", files={"prompts.jsonl": ""}),
    run_case("a missing model", "model", "no such model folder"),
    Case("no such stage", "run --quiet recipe.yaml --out out --until lunch", ("lunch", "evaluate"),
         {"recipe.yaml": recipe()}),
    Case("a run folder that is a file", "run --quiet recipe.yaml --out out", ("out", "is a file"),
         {"recipe.yaml": recipe(), "out": "mine"}),
    Case("a run folder inside a file", "run --quiet recipe.yaml --out out/run", ("out",),
         {"recipe.yaml": recipe(), "out": "mine"}),
    Case("a report of another form", "report out", ("out/report.json", "not a valid report"),
         {"out/report.json": '{"alarms": 5}'}),
    Case("a report whose contrasts are a number", "report out", ("out/report.json", "charter run writes it again"),
         {"out/report.json": '{"contrasts": 5}'}),
    Case("a broken manifest", "run --quiet recipe.yaml --out out", ("out/prompts/manifest.json", "JSON"),
         {"recipe.yaml": recipe(), "out/prompts/manifest.json": "{"}),
    Case("a manifest that is a list", "run --quiet recipe.yaml --out out", ("out/prompts/manifest.json",),
         {"recipe.yaml": recipe(), "out/prompts/manifest.json": "[1]"}),
    # -- --set
    set_case("--set without =", "rl.steps", "rl.steps", "key=value"),
    set_case("--set without a key", "=5", "=5", "key=value"),
    set_case("--set with an empty part", "rl..steps=5", "rl..steps"),
    set_case("--set with broken YAML", "rl.steps=[1", "rl.steps", "YAML"),
    set_case("--set with a date that is none", "title=2024-99-99", "title", "YAML"),
    set_case("--set nested without end", "title=" + "[" * 3000, "title"),
    set_case("--set of the wrong type", "rl.steps=many", "rl.steps", "many"),
    set_case("--set of a negative number", "sft.epochs=-1", "sft.epochs", "-1"),
    set_case("--set of NaN", "rl.kl_coef=.nan", "rl.kl_coef", "finite"),
    set_case("--set of infinity", "sft.learning_rate=.inf", "sft.learning_rate", "finite"),
    set_case("--set of nothing", "seed=", "seed"),
    set_case("--set of an unknown key", "rl.step=5", "rl.step", "did you mean 'steps'"),
    set_case("--set below a number", "seed.x=5", "seed"),
    set_case("--set of a NUL", "title=a\0b", "title"),
    # -- prompts import
    Case("missing prompts", "prompts import none.jsonl --out out.jsonl", ("none.jsonl",)),
    Case("prompts in a folder", "prompts import d --out out.jsonl", ("d:", "folder"), {"d/x": ""}),
    Case("a file name that is no UTF-8", "prompts import x\udcff.jsonl --out out.jsonl", (r"x\udcff.jsonl",)),
    Case("a file name too long", f"prompts import {'n' * 300}.jsonl --out out.jsonl", ("nnn", "long")),
    Case("a format that cannot be written", "prompts import prompts.jsonl --out out.xml", ("out.xml", ".csv")),
    Case("a folder in the place of the output", "prompts import prompts.jsonl --out out.jsonl", ("out.jsonl",),
         {"out.jsonl/x": ""}),
    Case("an output inside a file", "prompts import prompts.jsonl --out prompts.jsonl/x.jsonl", ("prompts.jsonl",)),
    Case("a negative seed", "prompts import prompts.jsonl --out out.jsonl --seed -1", ("--seed",)),
    Case("a share that is no number", "prompts import prompts.jsonl --out out.jsonl --test-fraction nan",
         ("--test-fraction",)),
    Case("a share that is a word", "prompts import prompts.jsonl --out out.jsonl --test-fraction all",
         ("--test-fraction",)),
    Case("a limit of none", "prompts import prompts.jsonl --out out.jsonl --limit 0", ("--limit",)),
    Case("a tag with a surrogate", "prompts import prompts.jsonl --out out.jsonl --tag a\udcff", ("tags",)),
    import_case("broken JSON", "p.jsonl", line(prompt="a") + '{"prompt": \n', "line 2", "JSON"),
    import_case("a JSON number", "p.jsonl", line(prompt="a") + "7\n", "line 2", "not a number"),
    import_case("a number of 5000 digits", "p.jsonl", '{"prompt": ' + "7" * 5000 + "}\n", "line 1"),
    import_case("JSON nested without end", "p.jsonl", '{"prompt": ' + "[" * 100_000 + "\n", "line 1"),
    import_case("a NUL byte", "p.jsonl", '{"prompt": "a\\u0000b"}\n', "line 1", "prompt", "NUL"),
    import_case("half a surrogate pair", "p.jsonl", '{"prompt": "a\\ud83d"}\n', "line 1", "prompt", "surrogate"),
    import_case("text that is not UTF-8", "p.jsonl", b'{"prompt": "a"}\n{"prompt": "\xe9"}\n', "line 2", "UTF-8"),
    import_case("no column to read", "p.jsonl", line(puzzle="a"), "line 1", "puzzle"),
    import_case("a prompt that is a number", "p.jsonl", line(prompt=7), "line 1", "prompt"),
    import_case("an empty prompt", "p.jsonl", line(prompt=" "), "line 1", "prompt", "empty"),
    import_case("a role that does not exist", "p.jsonl", line(messages=[{"role": "cat", "content": "a"}]), "line 1", "role"),
    import_case("only an answer", "p.jsonl", line(messages=[{"role": "assistant", "content": "a"}]), "line 1", "messages"),
    import_case("a split that does not exist", "p.jsonl", line(prompt="a", split="dev"), "line 1", "split"),
    import_case("tags that are numbers", "p.jsonl", line(prompt="a", tags=[1]), "line 1", "tags"),
    import_case("an empty file", "p.jsonl", "", "prompts are missing"),
    import_case("blank lines only", "p.txt", "\n \n\n", "prompts are missing"),
    import_case("a line of 10 MB", "p.jsonl", line(prompt="a") + '{"prompt": "' + TEN_MB + '"}\n', "line 2", "MiB"),
    import_case("a line of text of 10 MB", "p.txt", TEN_MB, "line 1", "MiB"),
    import_case("a cell of 10 MB", "p.csv", "prompt\n" + TEN_MB, "line 2"),
    import_case("a CSV quote that never closes", "p.csv", 'prompt\na\n"b\n', "line 3"),
    import_case("a CSV row with a cell too many", "p.csv", "prompt,source\na,b\na,b,c\n", "line 3", "3 cells"),
    import_case("two CSV columns of one name", "p.csv", "prompt,prompt\na,b\n", "line 1", "same name"),
    import_case("a CSV with its header only", "p.csv", "prompt\n", "prompts are missing"),
    import_case("a NUL byte in a CSV", "p.csv", b"prompt\na\x00b\n", "line 2", "NUL"),
    import_case("a JSON file that is an object", "p.json", '{"prompt": 1,\n "a": 2}', "line 1"),
    import_case("a gzip that is none", "p.jsonl.gz", PROMPTS, "gzip"),
    import_case("a gzip cut short", "p.jsonl.gz", gzip.compress(PROMPTS.encode() * 50)[:-20], "gzip"),
    import_case("a gzip with a wrong byte", "p.csv.gz", gzip.compress(b"prompt\na\n")[:-8] + bytes(8), "gzip"),
    import_case("a Parquet file that is none", "p.parquet", "PAR1 and nothing else", "Parquet"),
    import_case("a dialogue in a text file", "p.txt", "Human: a\nAssistant: b\n", "line 1", "JSONL"),
    # -- prompts classify
    Case("prompts to classify that are missing",
         "prompts classify none.jsonl --constitution constitution.yaml --out out.jsonl",
         ("none.jsonl",)),
    Case("a constitution that is missing", "prompts classify prompts.jsonl --constitution none.yaml --out out.jsonl",
         ("none.yaml",)),
    Case("a constitution without a topic", "prompts classify prompts.jsonl --constitution c.yaml --out out.jsonl",
         ("c.yaml", "topic"), {"c.yaml": CONSTITUTION_YAML.replace("- topic", "- other")}),
    Case("a model that is missing",
         "prompts classify prompts.jsonl --constitution constitution.yaml --model none --out out.jsonl",
         ("none", "no such model")),
    Case("a model that is a file",
         "prompts classify prompts.jsonl --constitution constitution.yaml --model m --out out.jsonl",
         ("m:", "is a file"),
         {"m": "weights"}),
    Case("a model folder that is empty",
         "prompts classify prompts.jsonl --constitution constitution.yaml --model m --out out.jsonl",
         ("m:", "config.json"),
         {"m/readme": ""}),
    Case("pickled weights",
         "prompts classify prompts.jsonl --constitution constitution.yaml --model m --out out.jsonl",
         ("m:", "pickled", "pytorch_model.bin"), {"m/config.json": "{}", "m/pytorch_model.bin": b"\x80\x04."}),
    Case("a format to classify into", "prompts classify prompts.jsonl --constitution constitution.yaml --out out.xml",
         ("out.xml",)),
    # -- prompts prepare
    Case("a recipe to prepare that is missing", "prompts prepare none.yaml", ("none.yaml",)),
    Case("prompts to prepare with a missing model", "prompts prepare --quiet recipe.yaml --out out", ("model",),
         {"recipe.yaml": recipe()}),
    # -- constitution check
    Case("no constitution", "constitution check none.yaml", ("none.yaml",)),
    Case("a constitution that is a folder", "constitution check d", ("d:", "is a folder"), {"d/x": ""}),
    constitution_case("an empty constitution", "", "mapping"),
    constitution_case("broken YAML in a constitution", "title: x\nprinciples: [\n", "line"),
    constitution_case("no principle", "title: x\nprinciples: []\n", "line 2", "principles"),
    constitution_case("an unknown key of a principle",
                      "title: x\nprinciples:\n- id: a\n  title: a\n  preferense: b\n", "line 5", "did you mean 'preference'"),
    constitution_case("a principle without a use", "title: x\nprinciples:\n- id: a\n  title: a\n", "line 3", "'a'"),
    constitution_case("a critique without a revision", "title: x\nprinciples:\n- {id: a, title: a, critique: b}\n", "line 3"),
    constitution_case("two principles of one id",
                      "title: x\nprinciples:\n- {id: a, title: a, preference: b}\n- {id: a, title: a, preference: c}\n", "'a'"),
    constitution_case("a negative weight", "title: x\nprinciples:\n- {id: a, title: a, preference: b, weight: -1}\n", "line 3",
                      "weight"),
    constitution_case("a title that is a number", "title: 7\nprinciples: []\n", "line 1", "title"),
    constitution_case("an alias", "title: &a x\nprinciples: [*a]\n", "line 2", "alias"),
    constitution_case("a NUL byte in a constitution", b"title: x\nprinciples: \x00\n", "line 2", "NUL"),
    constitution_case("a constitution that is not UTF-8", b"title: x\n# \xff\n", "line 2", "UTF-8"),
    constitution_case("a surrogate in a constitution", 'title: "a\\uD83D"\nprinciples: []\n', "title", "surrogate"),
    constitution_case("a constitution of 10 MB", "title: " + TEN_MB, "MiB"),
    constitution_case("a constitution nested without end", "title: " + "[" * 5000, "YAML"),
    # -- constitution import
    Case("nothing to import", "constitution import none.json --out out.yaml", ("none.json",)),
    published_case("broken JSON of a constitution", "c.json", '{"a": \n', "line", "JSON"),
    published_case("a format nobody publishes", "c.json", "7", "format"),
    published_case("an empty list of principles", "c.json", "[]", "no principle"),
    published_case("a list with an empty principle", "c.json", '["be kind", ""]', "principle-02"),
    published_case("a principle without its revision", "c.json", '{"harm": {"prompt": ["a"]}}', "harm.edit_request"),
    published_case("constitutions that are no list", "c.json", '{"constitutions": 7}', "constitutions"),
    published_case("a text with a NUL", "c.txt", b"be kind\nbe \x00\n", "NUL"),
    published_case("a surrogate in JSON", "c.json", '["be \\ud83d"]', "surrogate"),
    published_case("an empty text", "c.txt", "\n", "no principle"),
    Case("an output that is a folder", "constitution import c.txt --out d", ("d:", "directory"),
         {"c.txt": "be kind\n", "d/x": ""}),
    # -- reward train
    Case("missing pairs", "reward train --quiet none.jsonl --out out --model model", ("none.jsonl",)),
    pairs_case("broken JSON of a pair", PAIRS + "{", "line 13", "JSON"),
    pairs_case("an empty file of pairs", "", "no usable pair"),
    pairs_case("one pair", PAIRS.splitlines()[0], "at least 2"),
    pairs_case("pairs that all say the same twice", line(prompt="a", chosen="b", rejected="b"), "identical"),
    pairs_case("no rejected answer", line(prompt="a", chosen="b"), "line 1", "rejected"),
    pairs_case("an answer that is a number", line(prompt="a", chosen="b", rejected=7), "line 1", "rejected"),
    pairs_case("a weight above one", line(prompt="a", chosen="b", rejected="c", weight=2), "line 1", "weight"),
    pairs_case("a negative margin", line(prompt="a", chosen="b", rejected="c", margin=-1), "line 1", "margin"),
    pairs_case("a probability that is NaN", '{"prompt": "a", "chosen": "b", "rejected": "c", "p": NaN}\n', "line 1", "'p'"),
    pairs_case("a surrogate in an answer", '{"prompt": "a", "chosen": "\\ud83d", "rejected": "c"}\n', "line 1", "chosen"),
    pairs_case("a pair of 10 MB", line(prompt="a", chosen=TEN_MB, rejected="c"), "line 1", "MiB"),
    pairs_case("pairs in a gzip cut short", gzip.compress(PAIRS.encode())[:-9], "gzip", file="p.jsonl.gz"),
    Case("a learning rate that is NaN", "reward train --quiet pairs.jsonl --out out --model model --learning-rate nan",
         ("learning",)),
    Case("a learning rate of zero", "reward train --quiet pairs.jsonl --out out --model model --learning-rate 0",
         ("learning_rate",)),
    Case("a negative learning rate", "reward train --quiet pairs.jsonl --out out --model model --learning-rate -1",
         ("--learning-rate",)),
    Case("a negative rank", "reward train --quiet pairs.jsonl --out out --model model --lora-rank -2",
         ("--lora-rank",)),
    Case("a precision that there is not", "reward train --quiet pairs.jsonl --out out --model model --precision float8",
         ("--precision", "float8")),
    Case("a reward model of nothing", "reward train --quiet pairs.jsonl --out out --model none",
         ("none", "no such model")),
    Case("a reward model of pickled weights", "reward train --quiet pairs.jsonl --out out --model m", ("m:", "pickled"),
         {"m/config.json": "{}", "m/pytorch_model.bin": b"\x80\x04."}),
    Case("a reward model in a file", "reward train --quiet pairs.jsonl --out out --model model", ("out", "is a file"),
         {"out": "mine"}),
    # -- report
    Case("a report of no run", "report none", ("none", "report.json")),
    Case("a report of an empty folder", "report d", ("d:", "report.json"), {"d/x": ""}),
    Case("a report of a file", "report f", ("f/report.json",), {"f": "x"}),
    Case("a broken report.json", "report d", ("d/report.json", "JSON"), {"d/report.json": '{"title": '}),
    Case("a report.json that is not UTF-8", "report d", ("d/report.json",), {"d/report.json": b'{"title": "\xff"}'}),
    Case("a report.json that is a list", "report d", ("d:", "report.json"), {"d/report.json": "[]"}),
    Case("a report.json nested without end", "report d", ("d/report.json",), {"d/report.json": "[" * 100_000}),
    Case("a report.json that is a folder", "report d", ("d/report.json",), {"d/report.json/x": ""}),
    # -- plan, show-tokens, chat
    Case("a plan of no recipe", "plan none.yaml", ("none.yaml",), needs="charter.plan"),
    Case("a plan with an unknown key", "plan recipe.yaml", ("zebra",), {"recipe.yaml": recipe(zebra=1)},
         needs="charter.plan"),
    Case("a plan of no model", "plan recipe.yaml", ("model",), {"recipe.yaml": recipe()}, needs="charter.plan"),
    Case("tokens of no recipe", "show-tokens none.yaml", ("none.yaml",), needs="charter.tasks.show_tokens"),
    Case("tokens of an unknown method", "show-tokens recipe.yaml", ("dpoo",),
         {"recipe.yaml": recipe(rl={"method": "dpoo"})},
         needs="charter.tasks.show_tokens"),
    Case("tokens of no model", "show-tokens recipe.yaml", ("model",), {"recipe.yaml": recipe()},
         needs="charter.tasks.show_tokens"),
    Case("a chat with no run", "chat none", ("none",), needs="charter.tasks.conversation"),
    Case("a chat with an empty folder", "chat d", ("d",), {"d/x": ""}, needs="charter.tasks.conversation"),
    Case("a chat with a model that no run has", "chat d --model teacher", ("teacher",), {"d/x": ""},
         needs="charter.tasks.conversation"),
    Case("a chat below zero degrees", "chat d --temperature -1", ("--temperature",), {"d/x": ""},
         needs="charter.tasks.conversation"),
    Case("a chat at no temperature", "chat d --temperature nan", ("temperature",), {"d/x": ""},
         needs="charter.tasks.conversation"),
    Case("a chat with no token left", "chat d --top-p 0", ("--top-p",), {"d/x": ""}, needs="charter.tasks.conversation"),
    Case("a chat with a share that is none", "chat d --min-p nan", ("--min-p",), {"d/x": ""},
         needs="charter.tasks.conversation"),
]  # fmt: skip


def lay_out(folder: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def says_one_line(rc: int, err: str, says: tuple[str, ...]) -> None:
    assert rc == 2, err
    assert len(err.strip().splitlines()) == 1, err
    assert err.endswith("\n")
    assert "Traceback" not in err
    assert len(err) < 1000, err[:2000]
    assert all(character.isprintable() for character in err.rstrip("\n")), repr(err)
    for words in says:
        assert words in err, err


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bad_input_is_one_line_and_leaves_nothing(case, tmp_path, monkeypatch, capsys):
    if case.needs and find_spec(case.needs) is None:
        pytest.skip(f"{case.needs} is not there yet")
    lay_out(tmp_path, {**GOOD, **case.files})
    before = snapshot(tmp_path)
    monkeypatch.chdir(tmp_path)
    rc = run_command(shlex.split(case.command))
    says_one_line(rc, capsys.readouterr().err, case.says)
    after = snapshot(tmp_path)
    assert {name: after.get(name) for name in before} == before
    assert {Path(name).name for name in after.keys() - before.keys()} <= KEPT


MODEL_CASES = [
    Case("a config.json that breaks", "reward train --quiet pairs.jsonl --out out --model m", ("m:", "does not load"),
         {"m/config.json": "{"}),
    Case("a config.json of no known architecture", "reward train --quiet pairs.jsonl --out out --model m",
         ("m:", "does not load"),
         {"m/config.json": '{"model_type": "abacus"}'}),
    Case("weights that are cut short", "reward train --quiet pairs.jsonl --out out --model m", ("m:", "does not load"),
         {"m/model.safetensors": b"\x10\0\0\0\0\0\0\0{"}),
    Case("weights that are missing", "reward train --quiet pairs.jsonl --out out --model m",
         ("m:", "weights are missing"),
         {"m/model.safetensors": b"\x02\0\0\0\0\0\0\0{}"}),
    Case("a tokenizer that breaks", "reward train --quiet pairs.jsonl --out out --model m", ("m:", "tokenizer"),
         {"m/tokenizer.json": "{"}),
    Case("one prompt", "run --quiet recipe.yaml --out out", ("red_team",),
         {"recipe.yaml": recipe(model="m"), "prompts.jsonl": line(prompt="How do I mend a lamp?", tags=["benign"])}),
    Case("worked examples that break", "run --quiet recipe.yaml --out out --until revise", ("shots.yaml", "line 1", "examples"),
         {"recipe.yaml": recipe(model="m", revise={"few_shots": "shots.yaml"}), "shots.yaml": "examples: []\n"}),
]  # fmt: skip


@pytest.mark.parametrize("case", MODEL_CASES, ids=str)
def test_a_bad_model_or_bad_data_beside_a_good_one_is_one_line(case, tmp_path, random_llama, monkeypatch, capsys):
    shutil.copytree(random_llama, tmp_path / "m")
    lay_out(tmp_path, {**GOOD, **case.files})
    monkeypatch.chdir(tmp_path)
    rc = run_command(shlex.split(case.command))
    says_one_line(rc, capsys.readouterr().err, case.says)
    assert not list(tmp_path.rglob("*.tmp"))


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """What a disk quota does: writing more than ``size`` bytes to one file fails with an OSError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


WRITERS = {
    "prompts import to JSONL": ("prompts import many.jsonl --out new.jsonl", "new.jsonl"),
    "prompts import to JSON": ("prompts import many.jsonl --out new.json", "new.json"),
    "prompts import to CSV": ("prompts import many.jsonl --out new.csv", "new.csv"),
    "constitution import": ("constitution import many.txt --out new.yaml", "new.yaml"),
    "report": ("report old", "report"),
    "run": ("run --quiet recipe.yaml --out run", "run"),
    "reward train": ("reward train --quiet pairs.jsonl --model m --out run", "disk"),
}


def lay_out_writers(folder: Path, random_llama: Path) -> None:
    many = "".join(line(prompt=f"How can I break lamp {i}?", tags=["red_team"]) for i in range(400))
    sentences = "".join(f"Be kind {i} times.\n" for i in range(200))
    old = {"title": "old", "metrics": []}
    lay_out(folder, {**GOOD, "many.jsonl": many, "many.txt": sentences, "old/report.json": json.dumps(old),
                     "recipe.yaml": recipe(model="m", prompts={"files": ["many.jsonl"]})})  # fmt: skip
    shutil.copytree(random_llama, folder / "m")


def half_written(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.suffix == ".tmp" or file.name.startswith("new.")]


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_that_may_not_grow_is_one_line(name, tmp_path, random_llama, monkeypatch, capsys):
    lay_out_writers(tmp_path, random_llama)
    monkeypatch.chdir(tmp_path)
    command, says = WRITERS[name]
    with files_of_at_most(2000):
        rc = run_command(shlex.split(command))
    says_one_line(rc, capsys.readouterr().err, (says,))
    assert not half_written(tmp_path)


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_line(name, tmp_path, random_llama, monkeypatch, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("only root may mount a small disk; the test of files that may not grow stands in")
    try:
        lay_out_writers(tmp_path, random_llama)
        shutil.copytree(tmp_path / "old", disk / "old")
        (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free - 2 * 4096))
        monkeypatch.chdir(tmp_path)
        command, says = WRITERS[name]
        for there in ("--out ", "report "):
            command = command.replace(there, there + "disk/")
        rc = run_command(shlex.split(command))
        says_one_line(rc, capsys.readouterr().err, (says,))
        assert not half_written(disk)
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "report"])
def test_a_folder_that_may_not_be_written_is_one_line(name, tmp_path, random_llama, monkeypatch, capsys):
    # Nobody makes files in /sys, whereas root writes into folders whose mode forbids it.
    if not Path("/sys/kernel").is_dir():
        pytest.skip("this system has no /sys, the folder in which not even root makes files")
    lay_out_writers(tmp_path, random_llama)
    monkeypatch.chdir(tmp_path)
    command, _ = WRITERS[name]
    rc = run_command(shlex.split(command.replace("--out ", "--out /sys/kernel/")))
    says_one_line(rc, capsys.readouterr().err, ("/sys/kernel",))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads and writes what the mode forbids")
def test_what_the_mode_forbids_is_one_line(tmp_path, monkeypatch, capsys):
    lay_out(tmp_path, {**GOOD, "locked/x": ""})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "locked").chmod(0o500)
    (tmp_path / "prompts.jsonl").chmod(0)
    says_one_line(run_command(["prompts", "import", "pairs.jsonl", "-o", "locked/p.csv"]), capsys.readouterr().err, ("locked",))
    says_one_line(run_command(["prompts", "import", "prompts.jsonl", "-o", "p.csv"]), capsys.readouterr().err, ("prompts.jsonl",))


def test_the_real_entry_point_says_the_same_line(tmp_path):
    command = [sys.executable, "-m", "charter", "run", "none.yaml"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (found.returncode, found.stdout, found.stderr) == (2, "", "charter: none.yaml: no such file\n")


def test_a_control_character_in_a_file_does_not_reach_the_terminal(tmp_path, monkeypatch, capsys):
    lay_out(tmp_path, {"p.jsonl": line(**{"\x1b[2Jquestion": "a"})})
    monkeypatch.chdir(tmp_path)
    rc = run_command(["prompts", "import", "p.jsonl", "-o", "o.jsonl"])
    says_one_line(rc, capsys.readouterr().err, (r"\x1b[2Jquestion",))
