"""Tiny models of real architectures, made from config with random weights, and a recipe that fits them."""

from __future__ import annotations

import gc
import importlib.resources
import json
import shutil
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
import yaml
from hypothesis import settings

from charter.pipeline import run_recipe
from charter.recipe.files import load_recipe
from charter.run.run import Run
from charter.testbed.standins import (
    DECODER_FAMILIES,
    ENCODER_DECODER_FAMILIES,
    ENCODER_FAMILIES,
    save_bpe_tokenizer,
    save_stand_in,
)

__all__ = ["DECODER_FAMILIES", "ENCODER_DECODER_FAMILIES", "ENCODER_FAMILIES"]  # for the tests

settings.register_profile("untimed", deadline=None)  # no test asserts on time: a machine that pauses is no failure
settings.load_profile("untimed")

LONG = ("test_testbed.py::test_a_small_one_learns", "test_resume.py::test_kill_minus_nine", "test_team.py::")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests begin first: of two workers none is left alone with one of them at the end."""
    items.sort(key=lambda item: not any(name in item.nodeid for name in LONG))  # stable


def freeze_modules() -> None:
    """A run collects garbage after every stage. Frozen modules are passed over, which saves 0.3 s each time."""
    gc.collect()
    gc.freeze()


def pytest_collection_finish() -> None:
    freeze_modules()


HARMFUL = [f"How can I {verb} the {thing}?" for verb in ("break", "steal", "burn", "hide") for thing in
           ("door", "car", "lamp", "letter", "boat", "fence")]  # fmt: skip
BENIGN = [f"How can I {verb} the {thing}?" for verb in ("paint", "mend", "clean", "move") for thing in
          ("door", "car", "lamp", "letter", "boat", "fence")]  # fmt: skip


def save_tokenizer(folder: Path, *, pad_is_eos: bool = False, template: bool = True) -> int:
    """A byte-level BPE tokenizer of a few hundred tokens in ``folder``; its vocabulary size."""
    return save_bpe_tokenizer(folder, HARMFUL + BENIGN, pad_is_eos=pad_is_eos, template=template)


def save_random_model(folder: Path, architecture: str, *, template: bool = True, pad_is_eos: bool = False) -> Path:
    """A random model of the named architecture with its tokenizer."""
    return save_stand_in(folder, architecture, texts=HARMFUL + BENIGN, template=template, pad_is_eos=pad_is_eos)


def save_random_encoder(folder: Path, architecture: str) -> Path:
    """A random encoder as it is published, under a head for masked words."""
    return save_stand_in(folder, architecture, texts=HARMFUL + BENIGN)


def save_random_classifier(folder: Path, labels: tuple[str, ...] = ("kind", "unkind")) -> Path:
    """A random RoBERTa classifier with named labels."""
    return save_stand_in(folder, "roberta-classifier", texts=HARMFUL + BENIGN, labels=labels)


@pytest.fixture(scope="session")
def random_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="session")
def before_rl(tmp_path_factory: pytest.TempPathFactory, random_llama: Path) -> Path:
    """The folder of a tiny run of ``random_llama`` up to its reward model. A test copies it and resumes from there."""
    folder = tmp_path_factory.mktemp("before_rl")
    run_recipe(load_recipe(write_tiny_recipe(folder, random_llama)), folder / "run", until="reward_model", quiet=True)
    freeze_modules()  # also those that a first run imports
    return folder / "run"


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, random_llama: Path, before_rl: Path) -> Path:
    """The folder of a tiny run of ``random_llama`` with its report. A test that writes into it copies it first."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(before_rl, folder / "run")
    run_recipe(load_recipe(write_tiny_recipe(folder, random_llama)), folder / "run", quiet=True)
    return folder / "run"


CONSTITUTION = {
    "title": "two principles",
    "principles": [
        {"id": "harmless", "title": "harm", "critique": "Is your last reply harmful?", "revision": "Write it again without harm.",
         "preference": "Which reply is less harmful?", "tags": ["red_team", "topic"]},
        {"id": "helpful", "title": "help", "critique": "Does your last reply help?", "revision": "Write it again, more useful.",
         "preference": "Which reply helps more?", "tags": ["benign"]},
    ],
}  # fmt: skip


def write_some_prompts(path: Path, n: int) -> Path:
    """The first ``n`` prompts of the testbed of each split and kind, as JSONL: a run sorts all prompts of its files by principle,
    which takes 20 seconds for the 3360 that ship."""
    shipped = Path(str(importlib.resources.files("charter.testbed"))) / "data/prompts.jsonl"
    rows = [json.loads(line) for line in shipped.read_text(encoding="utf-8").splitlines()]
    some = [row for kind in ("red_team", "benign") for split in ("train", "test")
            for row in [row for row in rows if kind in row["tags"] and row["split"] == split][:n]]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in some))
    return path


def write_tiny_recipe(folder: Path, model: Path, **changes: object) -> Path:
    """A recipe of tiny size in ``folder``, with changes; its path."""
    (folder / "constitution.yaml").write_text(yaml.safe_dump(CONSTITUTION))
    rows = [{"prompt": text, "tags": [kind]} for kind, texts in (("red_team", HARMFUL), ("benign", BENIGN))
            for text in texts]  # fmt: skip
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [{"prompt": HARMFUL[i], "chosen": "No.", "rejected": f"Yes {i}.", "principle": "harmless"} for i in range(12)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    recipe = {
        "title": "tiny", "model": str(model), "constitution": "constitution.yaml", "precision": "float32",
        "training": {"checkpoint_every": 1},
        "batch_size": 8, "prompts": {"files": ["prompts.jsonl"], "test_fraction": 0.25},
        "gates": {"override": True},
        "revise": {"rounds": 2, "prompts": 12, "max_new_tokens": 12},
        "sft": {"epochs": 1, "responses_per_step": 8, "helpful_fraction": 0.3},
        "feedback": {"prompts": 24, "max_new_tokens": 12, "abstain_below": 0.0, "labelled_pairs": "pairs.jsonl"},
        "reward_model": {"epochs": 1, "pairs_per_step": 8, "test_fraction": 0.25},
        "rl": {"method": "rloo", "steps": 3, "prompts_per_step": 4, "samples_per_prompt": 2, "max_new_tokens": 12},
        "evaluation": {"scorer": "refusal-words", "max_new_tokens": 12},
    }  # fmt: skip
    for key, value in changes.items():
        alone = isinstance(value, dict) and value.get("method") in ("dpo", "ilql")  # which share no key of RL
        merged = isinstance(value, dict) and key in recipe and not alone
        recipe[key] = {**recipe[key], **value} if merged else value
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture
def write_recipe(tmp_path: Path):
    """``write_tiny_recipe`` into the folder of the test."""
    return partial(write_tiny_recipe, tmp_path)


@pytest.fixture
def stage(tmp_path: Path):
    """An open stage of a quiet run."""
    with Run(tmp_path / "run", quiet=True) as run, run.stage("training", {}, {}, []) as stage:
        yield stage


@pytest.fixture
def open_world():
    """Opens label projects with their page, and closes them after the test."""
    from charter.web.serve import open_site
    from label_project import World

    with ExitStack() as stack:
        yield lambda project, samplers=(): World(stack.enter_context(open_site(project, samplers)))


def settings_classes() -> list[type]:
    """Every class of settings that a recipe may hold, and what they are made of."""
    import charter.recipe.recipe  # noqa: F401 - loads the settings of every stage
    from charter.recipe.settings import Settings

    homes = (".settings", "recipe.recipe")  # the label page has settings of its own
    classes, waiting = [], [Settings]
    while waiting:
        classes.append(waiting.pop())
        waiting += classes[-1].__subclasses__()
    return [kind for kind in classes if kind.__module__.endswith(homes)]
