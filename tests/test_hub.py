"""What arrives at a hub is what lies in the run folder, and nothing else leaves without being asked for."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from charter.commands.app import run_command
from charter.errors import InputError
from charter.evaluation.model_card import without_folders
from charter.run.files import write_json
from charter.run.hashes import model_hash
from charter.tasks.hub import gather, push
from charter.verification import verify_run

# huggingface_hub's own call of its HTTP client, for large files.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Hub(BaseHTTPRequestHandler):
    """The requests that huggingface_hub makes to create a repository and commit files, kept in ``repositories``: small ones in
    the commit itself, weights by git's protocol for large files (LFS). The hub's newer one (Xet) is its own program's."""

    def do_GET(self):
        name = self.path.split("?")[0].removeprefix("/api/models/").removesuffix("/revision/main")
        self.reply(self.about(name) if name in self.server.repositories else None)

    def about(self, name):
        found = self.server.repositories[name]
        return {"id": name, "sha": "0" * 40, "private": found["private"], "tags": [],
                "siblings": [{"rfilename": path} for path in found["files"]]}  # fmt: skip

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.headers.append(dict(self.headers))
        path, repositories = self.path.split("?")[0], self.server.repositories
        if self.headers["authorization"] != "Bearer hf_right":
            self.reply({"error": f"bad token {self.headers['authorization']}"}, 401)
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization'] or 'me'}/{asked['name']}"
            exists = name in repositories
            private = asked.get("visibility") == "private" or asked.get("private") is True
            repositories.setdefault(name, {"private": private, "files": {}, "commits": []})
            self.reply({"url": f"{self.server.url}/{name}", "id": name, "name": name}, 409 if exists else 200)
        elif path == "/api/validate-yaml":
            self.reply({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = repositories["/".join(path.split("/")[3:5])]["files"]
            wanted = [one["path"] for one in json.loads(body)["files"]]
            self.reply({"files": [
                {"path": path, "uploadMode": "lfs" if path.endswith(".safetensors") else "regular", "shouldIgnore": False,
                 "oid": blob_id(files[path]) if path in files else None} for path in wanted
            ]})  # fmt: skip
        elif path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            self.reply({"transfer": "basic", "objects": [
                {**one, "actions": {"upload": {"href": f"{self.server.url}/large/{one['oid']}"}}} for one in objects
            ]})  # fmt: skip
        elif "/commit/" in path:
            name = "/".join(path.split("/")[3:5])
            found = repositories[name]
            lines = [json.loads(line) for line in body.splitlines()]
            for line in lines:
                if line["key"] == "file":
                    assert line["value"]["encoding"] == "base64"
                    found["files"][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "lfsFile":
                    large = self.server.large[line["value"]["oid"]]
                    assert len(large) == line["value"]["size"]
                    found["files"][line["value"]["path"]] = large
                elif line["key"] == "deletedFile":
                    del found["files"][line["value"]["path"]]
            found["commits"].append([line["value"].get("path", line["value"].get("summary")) for line in lines])
            self.reply({"commitUrl": f"{self.server.url}/{name}/commit/{'1' * 40}", "commitOid": "1" * 40, "hookOutput": ""})
        else:
            self.reply(None)

    def do_PUT(self):
        content = self.rfile.read(int(self.headers["content-length"]))
        assert self.path == f"/large/{hashlib.sha256(content).hexdigest()}"
        assert "authorization" not in self.headers  # the address is the permission, and another machine's
        self.server.large[self.path.removeprefix("/large/")] = content
        self.reply({"stored": True})

    def reply(self, value, status=200):
        body = json.dumps(value or {"error": "not found"}).encode()
        self.send_response(status if value else 404)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.url, server.repositories, server.headers = f"http://127.0.0.1:{server.server_address[1]}", {}, []
        server.large = {}
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, finished_run):
    """A finished run of tiny size."""
    return shutil.copytree(finished_run, tmp_path_factory.mktemp("pushed") / "run")


def test_what_arrives_is_the_folder_byte_for_byte(hub, finished):
    result = push(gather(finished), "someone/tiny", endpoint=hub.url)
    there = hub.repositories["someone/tiny"]
    model = {file.name: file.read_bytes() for file in (finished / "rl/model").iterdir() if file.name != "README.md"}
    assert {name: one for name, one in there["files"].items() if name not in ("README.md", "metrics.jsonl")} == model
    assert there["files"]["metrics.jsonl"] == (finished / "rl/metrics.jsonl").read_bytes()
    assert set(hub.large.values()) == {model["model.safetensors"]}
    assert there["private"]
    assert (result["repository"], result["private"], result["removed"]) == ("someone/tiny", True, [])
    assert {one["path"]: one["bytes"] for one in result["files"]} == {k: len(v) for k, v in there["files"].items()}
    assert "hf_right" not in json.dumps(result)


def test_a_pushed_model_loads_and_its_card_is_read(hub, finished, tmp_path):
    from huggingface_hub import ModelCard
    from transformers import AutoModelForCausalLM

    push(gather(finished / "sft"), "tiny", endpoint=hub.url)
    for name, content in hub.repositories["me/tiny"]["files"].items():
        (tmp_path / name).write_bytes(content)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.model_type == "llama"
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "transformers"
    assert "| Harmful compliance |" in card.text
    assert "Gate overridden" in card.text
    report = json.loads((finished / "report.json").read_text())
    measured = {row["name"]: row for row in report["metrics"] if row["arm"] == "sft" and row["group"] is None}
    results = {result.metric_type: result for result in card.data.eval_results}
    assert results.keys() == {"harmful_compliance", "over_refusal", "kl"}  # refusal-words knows no helpfulness
    for name, result in results.items():
        assert (result.metric_value, result.metric_args) == (
            measured[name]["value"], {"n": measured[name]["n"], "ci": measured[name]["ci"]}
        )  # fmt: skip
    assert card.data.model_name == "tiny: sft"


def test_a_model_folder_has_the_card_that_would_be_sent_and_verify_knows_it(finished, tmp_path):
    for stage in ("sft", "reward_model", "rl"):
        assert (finished / stage / "model/README.md").read_bytes() == gather(finished / stage).files["README.md"]
    shutil.copytree(finished, run := tmp_path / "run")
    assert verify_run(run)["differences"] == []
    card = run / "rl/model/README.md"
    before = model_hash(str(run / "rl/model"))
    card.write_text(card.read_text().replace("Harmful", "Harmless", 1))
    assert [row["file"] for row in verify_run(run)["differences"]] == ["rl/model/README.md"]
    assert model_hash(str(run / "rl/model")) == before  # a card decides no answer


def test_the_card_of_a_reward_model_has_its_accuracy(finished):
    from huggingface_hub import ModelCard

    card = ModelCard(gather(finished / "reward_model").files["README.md"].decode())
    (result,) = card.data.eval_results
    told = json.loads((finished / "reward_model/manifest.json").read_text())["result"]
    assert (result.metric_type, result.metric_value, result.metric_args["n"]) == ("accuracy", told["accuracy"], told["n"])
    assert card.data.tags == ["charter", "alignment"]


@pytest.mark.parametrize("stage", ["sft", "rl", "reward_model"])
def test_nothing_that_anybody_wrote_leaves_unasked(finished, stage):
    sent = b"".join(one if isinstance(one, bytes) else one.read_bytes() for one in gather(finished / stage).files.values())
    written = [json.loads(line) for line in (finished / "prompts/prompts.jsonl").read_text().splitlines()]
    texts = [row["messages"][-1]["content"] for row in written]
    assert texts
    assert not [text for text in texts if text.encode() in sent]
    assert str(finished.parent).encode() not in sent
    names = set(gather(finished / stage, with_data=True).files) - set(gather(finished / stage).files)
    assert {"data/prompts/prompts.jsonl", "data/rl/rollouts.jsonl", "data/feedback/judgments.jsonl", "data/report.json",
            "data/feedback/pairs.jsonl", "data/revise/revisions.jsonl"} <= names  # fmt: skip


def test_a_second_push_sends_what_changed_and_removes_stale_weights(hub, finished):
    push(gather(finished), "me/tiny", endpoint=hub.url)
    there = hub.repositories["me/tiny"]
    there["files"]["model-00001-of-00002.safetensors"] = b"of a larger model"
    there["files"]["notes.txt"] = b"a person's own"
    result = push(gather(finished / "sft"), "me/tiny", endpoint=hub.url)
    assert result["removed"] == ["model-00001-of-00002.safetensors"]
    assert there["files"]["notes.txt"] == b"a person's own"
    summary, *sent = there["commits"][1]
    assert summary == "Charter: the model of sft"
    assert {"model.safetensors", "model-00001-of-00002.safetensors"} <= set(sent)
    assert "config.json" not in sent


def test_a_public_repository_takes_nothing_unless_that_is_meant(hub, finished):
    push(gather(finished), "me/tiny", endpoint=hub.url)
    hub.repositories["me/tiny"]["private"] = False
    with pytest.raises(InputError, match="this repository is public; add --public"):
        push(gather(finished / "sft"), "me/tiny", endpoint=hub.url)
    assert len(hub.repositories["me/tiny"]["commits"]) == 1
    assert not push(gather(finished / "sft"), "me/tiny", public=True, endpoint=hub.url)["private"]


def test_a_token_that_is_refused_is_not_repeated(hub, finished, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(InputError, match="cannot send to the hub") as caught:
        push(gather(finished), "me/tiny", endpoint=hub.url)
    assert "hf_wrong" not in str(caught.value)


def test_a_dry_run_lists_sizes_without_a_network_or_a_login(finished, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HOME", "/nonexistent")
    assert run_command(["push", str(finished), "me/tiny", "--dry-run", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {"path": "model.safetensors", "bytes": (finished / "rl/model/model.safetensors").stat().st_size} in listed["files"]
    assert listed["private"] is True


@pytest.mark.parametrize("place", ["", "prompts", "nowhere"])
def test_a_folder_without_a_model_is_named(finished, tmp_path, place, capsys):
    where = finished / place if place else tmp_path
    assert run_command(["push", str(where), "me/tiny", "--dry-run"]) == 2
    assert "no model here" in capsys.readouterr().err


def test_a_stage_that_is_not_finished_is_not_sent(tmp_path):
    (tmp_path / "rl/model").mkdir(parents=True)
    write_json(tmp_path / "rl/manifest.json", {"fingerprint": "x"})
    with pytest.raises(InputError, match="this stage is not finished"):
        gather(tmp_path)


def test_a_card_names_no_folder_of_this_machine():
    assert without_folders("the /home/ann/models/big model, 3/4 of it") == "the big model, 3/4 of it"
    assert Path("/home/ann/models/big").name in without_folders("/home/ann/models/big")


def test_the_command_sends_to_the_hub_of_the_environment(hub, finished):
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_right"}
    command = [sys.executable, "-m", "charter", "push", str(finished / "reward_model"), "reward", "--with-data"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.startswith("26 files, private: ")
    assert "hf_right" not in said.stdout + said.stderr
    sent = hub.repositories["me/reward"]["files"]
    assert sent["reward_model.safetensors"] == (finished / "reward_model/model/reward_model.safetensors").read_bytes()
    assert sent["data/rl/rollouts.jsonl"] == (finished / "rl/rollouts.jsonl").read_bytes()
