"""The paper plan is what its script says, and the scripts that start it on a cluster are valid."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def scale():
    spec = importlib.util.spec_from_file_location("scale", ROOT / "benchmarks/scale.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["scale"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_what_the_script_prints(scale):
    page = (ROOT / "docs/scale.md").read_text()
    shown = page.split(scale.BEGIN)[1].split(scale.END)[0].strip()
    assert shown == scale.report(scale.Machine()), "python benchmarks/scale.py --write docs/scale.md"


def test_the_shapes_are_those_of_llama_2(scale):
    assert [size.shape().parameters for size in (scale.SMALL, scale.LARGE)] == [6_738_415_616, 68_976_648_192]


def test_the_formulas_hold_on_a_stage_made_by_hand(scale):
    from charter.stages.load import Load

    machine, size = scale.Machine(decode_share=1, read_share=1, train_share=1), scale.SMALL
    p, load = size.shape().parameters, Load("sft", width=2)
    load.learn(size.shape(), 500 * 512 * 10)  # ten updates of 512 texts of 500 tokens
    load.score(size.shape(), 1000)
    one = scale.cost(load, size, machine)
    assert one.trained == 6 * p * 2_560_000
    assert one.read == 2 * p * 1000
    assert one.seconds["train"] == pytest.approx(one.trained / (8 * 989e12))
    passes = 10 * 512 * 500 / (8192 * 8)
    assert one.seconds["network"] == pytest.approx(passes * 8 * p * 7 / 8 / 450e9)  # 2 + 2 + 4 bytes a weight
    tokens = scale.hides_the_network(scale.Machine(), 8, 6)  # there products and gathers between nodes take equally long
    assert 6 * p * tokens / (989e12 * 0.4) == pytest.approx(8 * p / 400e9)


def test_examples_for_clusters_are_valid():
    script = ROOT / "examples/slurm.sh"
    subprocess.run(["bash", "-n", script], check=True)
    task = yaml.safe_load((ROOT / "examples/skypilot.yaml").read_text())
    subprocess.run(["bash", "-n"], input=task["run"] + task["setup"], text=True, check=True)
    for text in (script.read_text(), task["run"]):
        assert "-m charter run" in text
        assert '--out "$' in text
    assert task["resources"]["accelerators"] == "H100:8"


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    task = yaml.safe_load((ROOT / "examples/skypilot.yaml").read_text())
    subprocess.run(["shellcheck", ROOT / "examples/slurm.sh"], check=True)
    subprocess.run(["shellcheck", "--shell=bash", "-"], input=task["run"], text=True, check=True)
