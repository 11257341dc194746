"""Documentation that cannot drift."""

import ast
import contextlib
import importlib.util
import io
import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from charter.commands.app import run_command
from charter.constitution.constitution import load_constitution, save_constitution
from charter.records import Judgment, Response
from charter.run.files import read_jsonl, write_jsonl
from charter.testbed import lab
from charter.testbed.train import TESTBED_PRESETS
from conftest import settings_classes, write_some_prompts, write_tiny_recipe
from feedback_folder import chain
from test_training import ROLLOUT

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "results").glob("*.md")),
]


def test_the_table_of_recipes_is_that_of_the_settings_classes():
    place = ROOT / "docs/recipes.py"
    spec = importlib.util.spec_from_file_location("recipes", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert place.with_suffix(".md").read_text() == module.page()
    shown = {kind for _, kind in module.SECTIONS}
    # What others are made of, and ratings, which come from a file and not from a recipe.
    parts = {"Settings", "StageSettings", "SamplingSettings", "TrainingSettings", "EpochSettings", "RolloutSettings",
             "RLSettings", "PolicySettings", "PairSettings", "ScorerSettings", "RatingModelSettings"}  # fmt: skip
    assert {kind.__name__ for kind in set(settings_classes()) - shown} == parts
    for key, example in module.FIRST_LEVEL:
        assert re.search(rf"\b{key.rpartition('.')[2]}\b", example), f"{key}: its example does not show it"
        module.recipe_of(example)  # every example is a setting that a recipe may hold


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", prose(page)):
        if not target.startswith("http"):
            file, _, anchor = target.partition("#")
            place = page.parent / file if file else page
            assert place.exists(), target
            assert not anchor or anchor in anchors(place), target


def test_every_page_is_in_the_index():
    index = ROOT / "docs/index.md"
    linked = {(index.parent / target).resolve() for target in re.findall(r"\]\(([^)#]+\.md)\)", index.read_text())}
    assert {page.name for page in PAGES if page != index and page not in linked} == set()


def test_modules_of_the_api_pages_exist():
    modules = [name for page in (ROOT / "docs/api").glob("*.md") for name in re.findall(r"automodule:: (\S+)", page.read_text())]
    assert "charter.records" in modules
    assert [name for name in modules if not (ROOT / "src" / name.replace(".", "/")).with_suffix(".py").exists()] == []


def commands() -> list[tuple[str, str]]:
    """Every `charter …` that a page shows in backticks or in a shell block."""
    lines = []
    for page in PAGES:
        text = page.read_text()
        lines += [(page.name, line) for line in re.findall(r"`(charter [^`\n]+)`", text)]
        for block in re.findall(r"```(?:bash|sh|console)\n(.*?)```", text, re.DOTALL):
            lines += [(page.name, line.strip()) for line in block.splitlines() if line.strip().startswith("charter ")]
    return lines


# What the words of the pages stand for, by the command they belong to.
FILES = {
    "constitution check": "constitution.yaml",
    "constitution import": "published.json",
    "constitution export": "examples.yaml",
    "prompts import": "prompts.jsonl",
    "prompts classify": "prompts.jsonl",
    "prompts card": "prompts.jsonl",
    "reward train": "pairs.jsonl",
    "reward score": "pairs.jsonl",
    "evaluate MODEL": "small.csv",
    "import FILE": "pairs.jsonl",
    "ratings FILE": "votes",
    "agreement FILE": "votes",
    "raters FILE": "votes",
    "export FILE": "votes",
    "person RUN": "votes",
    "scorer card": "refusals.jsonl",
}
WORDS = {"RECIPE": "recipe.yaml", "RUN": "runs/recipe", "C": "constitution.yaml", "FAMILY": "llama",
         "F": "out/prompts.jsonl",
         "RUN/sft": "runs/recipe/sft", "RUN/reward_model": "runs/recipe/reward_model",
         "MODEL": "package:charter.testbed/model",
         "RUN:base": "runs/recipe:base", "RUN:policy": "runs/recipe:policy",
         "constitutions/demo.yaml": str(ROOT / "constitutions/demo.yaml"),
         "F.yaml": "out/imported.yaml", "A.yaml": "constitution.yaml", "B.yaml": "constitution.yaml",
         "A": "runs/recipe", "B": "runs/recipe",
         "MANIFEST": "exported.jsonl.manifest.json"}  # fmt: skip
SMALL = ["prompts.train=12", "prompts.test=8", "revise.prompts=12", "revise.rounds=1", "sft.epochs=1", "feedback.prompts=12",
         "feedback.gate_pairs=12", "rl.steps=1", "rl.prompts_per_step=4", "gates.override=true"]  # fmt: skip


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, random_llama, finished_run):
    """A folder with a recipe, the files it needs, and its finished run."""
    folder = tmp_path_factory.mktemp("documented")
    write_tiny_recipe(folder, random_llama)
    (folder / "my.yaml").write_text((folder / "recipe.yaml").read_text())
    (folder / "published.json").write_text(json.dumps(["Choose the response that is less harmful."]))
    example = {"prompt": "Hi?", "good": ["Hello."], "bad": [{"text": "Go.", "reason": "rude"}]}
    principle = {"id": "kind", "title": "kind", "critique": "Rude?", "revision": "Be kind.", "preference": "Which is kinder?",
                 "examples": [example, {"prompt": "Ho?"}]}  # fmt: skip
    (folder / "examples.yaml").write_text(json.dumps({"title": "examples", "principles": [principle]}))
    (folder / "out").mkdir()
    (folder / "votes").mkdir()
    for name in ("old", "new"):
        shutil.copy(ROOT / f"tests/data/results/lm-eval-{name}.jsonl", folder / f"{name}.jsonl")
    shutil.copy(ROOT / "tests/data/refusals.jsonl", folder)
    write_some_prompts(folder / "some.jsonl", 20)
    (folder / "small.csv").write_text(re.search(r"<<'END'\n(.*?)END", (ROOT / "docs/evaluate.md").read_text(), re.DOTALL)[1])
    shutil.copytree(finished_run, folder / "runs/recipe")
    with contextlib.chdir(folder):
        assert run_command(["export", "runs/recipe", "--to", "trl", "--out", "exported.jsonl"]) == 0
        few = ["--principles", "helpful", "--n", "120", "--noise", "0", "--out", "people"]
        assert run_command(["testbed", "votes", *few]) == 0
    rules = load_constitution(folder / "people/candidates.yaml")
    two = tuple(p for p in rules.principles if p.title in ("helpful", "peace"))
    for name in ("people/candidates.yaml", "inferred.yaml"):
        save_constitution(rules.model_copy(update={"principles": two}), folder / name)

    shutil.copy(folder / "runs/recipe/feedback/responses.jsonl", folder / "votes")
    shutil.copy(folder / "runs/recipe/prompts/prompts.jsonl", folder / "votes")
    write_votes(folder / "votes")
    shutil.copytree(folder / "votes", folder / "votes-to-forget")
    (folder / "camps.csv").write_text("rater,group\nann,left\nbob,right\n")
    shutil.copytree(folder / "votes", folder / "runs/studio")  # as the arena leaves them
    with contextlib.chdir(folder):
        assert run_command(["ratings", "votes", "--of", "responses", "--out", "out/rated"]) == 0
    return folder


def write_votes(folder):
    """Two raters who like long answers, on the responses in the folder: judgments.jsonl."""
    responses = {response.id: response for response in read_jsonl(folder / "responses.jsonl", Response)}
    by_prompt = {}
    for response in responses.values():
        by_prompt.setdefault(response.prompt_id, []).append(response)
    # All responses come from one model; every other response is assigned to a second model.
    named = [
        response.model_copy(update={"model": f"model-{i % 2}"})
        for group in by_prompt.values()
        for i, response in enumerate(group)
    ]
    write_jsonl(folder / "responses.jsonl", named)
    votes = []
    for prompt, group in by_prompt.items():
        order = sorted(group, key=lambda response: -len(response.text))
        for rater in ("ann", "bob"):
            ranks = {response.id: number for number, response in enumerate(order, start=1)}
            votes.append(Judgment(id=f"{prompt}-{rater}", set_id=prompt, prompt_id=prompt, rater_id=rater, rater_kind="human",
                                  order=tuple(response.id for response in group), ranks=ranks))  # fmt: skip
    write_jsonl(folder / "judgments.jsonl", chain(votes))


def at_size_of_seconds(line: str) -> list[str]:
    """The arguments of a documented command, its placeholders filled and long work made small."""
    words = shlex.split(line)[1:]
    name = " ".join(words[:2])
    places = WORDS | {"FILE": FILES.get(name, ""), "DIR": f"out/{words[0]}-{words[1]}"}
    words = [places.get(word, word) for word in words]
    if name == "constitution import":
        words = [word.replace("out/prompts.jsonl", "out/imported.yaml") for word in words]
    if name == "constitution check" and "--model" in words:
        words = [*words, "--most", "20"]
    if name == "testbed card":
        words = [*words, "--n", "10"]
    if name == "forget RUN":
        words = [word.replace("runs/recipe", "votes-to-forget") for word in words]
    if name == "person RUN":
        words = [*words, "--steps", "1", "--max-new-tokens", "8"]
    if name == "testbed votes":
        words = [word.replace("people", "out/people") for word in words]
    if name == "constitution card":
        words = [*words, "--limit", "4"]
    words = [re.sub("^5$", "2", word) for word in words]  # --seeds
    if words[0] == "run" and words[1] in ("demo", "demo-rloo", "smoke", "spectrum"):
        if "--out" in words and "--seeds" not in words:  # the lines about a recipe share a run: equal stages are skipped
            words[words.index("--out") + 1] = f"runs/{words[1]}"
        words += [f"--set={setting}" for setting in [*SMALL, f"prompts.files=[{Path.cwd() / 'some.jsonl'}]"]]
    return words


def alike(line: str) -> str:
    """A command without the seed and the folder of its run: at the size of seconds they change nothing."""
    return re.sub(r" --set seed=\d+| --out \S+", "", line) if line.startswith("charter run ") else line


@pytest.mark.parametrize("line", sorted({alike(line): line for _, line in sorted(commands())}.values()))
def test_commands_that_are_shown_run(line, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    monkeypatch.setitem(TESTBED_PRESETS, "full", replace(TESTBED_PRESETS["small"], tokens=(20_000,)))
    monkeypatch.setitem(lab.LAB_PRESETS, "full", lab.LAB_PRESETS["small"])
    if line.startswith(("charter serve", "charter run judge-api")):
        pytest.skip("runs until interrupted, or needs such a server; tests/test_serving.py and test_endpoint_faults.py run them")
    if "../shared/" in line or "hh-prompts" in line:
        pytest.skip("works on published data that is not part of this repository")
    if "smollm2" in line.lower() or "FILE.gguf" in line:
        pytest.skip("works on a model that make real downloads; tests/test_gguf.py and test_recipes.py run such commands")
    if line.startswith(("charter label ", "charter studio ")):
        pytest.skip("serves until it is interrupted; tests/test_label_browser.py and test_studio_browser.py start it")
    if line.startswith("charter lab hacking"):
        pytest.skip("is dozens of runs; tests/test_hacking.py makes a tiny lab")
    if "chat RUN --person" in line:
        pytest.skip("needs the model of a person first; tests/test_person.py makes one and talks to it")
    if line.startswith("charter run spectrum"):
        pytest.skip("has five arms; tests/test_recipes.py runs it")
    if "gold:" in line:
        pytest.skip("measures gold on more prompts than the size of seconds holds out; tests/test_gold.py runs such a training")
    if "--drop-one" in line:
        pytest.skip("a run for each principle; tests/test_values.py goes all the way")
    if "--feedback" in line:
        pytest.skip("stops until people have voted; tests/test_people.py goes all the way")
    assert run_command(at_size_of_seconds(line)) == 0


def recorded(module):
    """Names of what a page of training logs: keywords of its calls of ``record``, and means over tokens that it asks for."""
    calls = [
        n
        for n in ast.walk(ast.parse((ROOT / f"src/charter/training/methods/{module}.py").read_text()))
        if isinstance(n, ast.Call)
    ]
    of = {name: [call for call in calls if getattr(call.func, "attr", "") == name] for name in ("record", "per_token")}
    of_members = [call.args[6] for call in calls if getattr(call.func, "id", "") == "train_members"]
    return {keyword.arg for call in of["record"] for keyword in call.keywords if keyword.arg} | {
        ast.literal_eval(name) for name in [name for call in of["per_token"] for name in call.args] + [
            name for names in of_members for name in names.elts
        ]
    }  # fmt: skip


MODULES = sorted(p.stem for p in (ROOT / "src/charter/training/methods").glob("[!_]*.py"))


@pytest.mark.parametrize("module", MODULES)
def test_every_logged_metric_is_explained(module):
    page = {"principle_reader": "reward-model"}.get(module, module.replace("_", "-"))
    keys = recorded(module)
    assert keys
    text = (ROOT / f"docs/{page}.md").read_text() + ((ROOT / "docs/ppo.md").read_text() if module in ROLLOUT else "")
    of_the_loop = {"reward", "kl", "response_tokens", "missing_eos", "first_ratio", "grad_norm", "updates", "sampler_gap"}
    for key in keys | (of_the_loop if module in ROLLOUT else set()):
        assert f"`{key}`" in text, key
