"""The environments of Gymnasium: its own checks, seeds, vectors, every source of rewards and of candidates, and what abstains."""

import json
import re
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import charter.environments
from charter.environments.candidates import candidates_of
from charter.errors import GateError, InputError
from charter.models.classifier import Classifier
from charter.records import Generation, Message, Prompt, Response
from charter.run.files import write_jsonl
from conftest import save_random_classifier

ROWS = [{"prompt": f"Lamp {n}? é😀", "responses": ["Yes", "No way", "Maybe"]} for n in range(5)]


def length(prompt, response):
    return len(prompt) + len(response)


def silent_about_lamp_2(prompt, response):
    return None if prompt.startswith("Lamp 2") and response == "Maybe" else len(response)


def dialogue(**changes):
    return gymnasium.make("charter/Dialogue-v0", **({"candidates": ROWS, "scorer": length} | changes))


def text(**changes):
    return gymnasium.make("charter/Text-v0", **({"prompts": ["Hi", "Hello ß"], "scorer": length} | changes))


@pytest.mark.parametrize("make", [dialogue, text, lambda: text(user=["And?", "So?"])])
def test_gymnasium_finds_nothing_to_complain_about(make):
    check_env(make().unwrapped)  # a warning is an error here


def test_an_episode_is_a_prompt_a_choice_and_its_reward():
    env = gymnasium.make("charter.environments:charter/Dialogue-v0", candidates=ROWS, scorer=length)
    observation, info = env.reset(seed=3)
    assert observation == ROWS[info["index"]]["prompt"]
    assert info["candidates"] == ("Yes", "No way", "Maybe")
    same, reward, terminated, truncated, after = env.step(1)
    assert (same, reward, terminated, truncated) == (observation, len(observation) + 6, True, False)
    assert after["response"] == "No way"
    assert after["rewards"].tolist() == [len(observation) + n for n in (3, 6, 5)]
    assert after["best"] == reward
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(1)


def test_a_seed_gives_the_same_prompts_and_other_seeds_others():
    def draws(seed):
        env = dialogue()
        return [env.reset(seed=seed if n == 0 else None)[1]["index"] for n in range(30)]

    assert draws(0) == draws(0)
    assert draws(0) != draws(1)
    assert set(draws(0)) == set(range(5))


def test_a_prompt_with_a_response_that_nobody_can_score_is_passed_over_and_counted():
    env = dialogue(scorer=silent_about_lamp_2)
    infos = [env.reset(seed=n)[1] for n in range(40)]
    assert {info["index"] for info in infos} == {0, 1, 3, 4}
    assert {info["passed_over"] for info in infos} == {0, 1}
    with pytest.raises(GateError, match="abstains on at least one response to the prompt at index 2"):
        env.reset(options={"index": 2})
    assert env.reset(options={"index": 3})[0].startswith("Lamp 3")
    with pytest.raises(GateError, match="each of the 5 prompts"):
        dialogue(scorer=lambda *_: None).reset(seed=0)


def test_written_text_that_nobody_can_score_stops_the_run_or_gets_the_reward_that_the_user_named():
    env = text(scorer=lambda *_: None)
    env.reset(seed=0)
    with pytest.raises(GateError, match="set abstain"):
        env.step("Well")
    env = text(scorer=lambda _, response: None if response == "Well" else 1, abstain=-2.0, user=["And?"])
    env.reset(seed=0)
    _, reward, terminated, _, info = env.step("Well")
    assert (reward, terminated, info) == (-2.0, False, {"turn": 1, "abstained": True, "abstentions": 1})
    _, reward, terminated, _, info = env.step("Good")
    assert (reward, terminated, info) == (1.0, True, {"turn": 2, "abstained": False, "abstentions": 1})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "good"])
def test_a_reward_that_is_not_a_number_is_an_error(value):
    with pytest.raises(InputError, match="return a finite number"):
        dialogue(scorer=lambda *_: value).reset(seed=0)


def test_a_scripted_user_speaks_after_every_answer_and_each_answer_is_scored_in_its_conversation():
    asked = []
    env = text(prompts=["Hi"], user=["And?"], scorer=lambda prompt, response: asked.append((prompt, response)) or 1.0)
    assert env.reset(seed=0)[0] == "Hi"
    seen, _, terminated, *_ = env.step("žluť 😀")
    assert (seen, terminated) == ("user: Hi\nassistant: žluť 😀\nuser: And?", False)
    seen, _, terminated, *_ = env.step("")
    assert (seen, terminated) == ("user: Hi\nassistant: žluť 😀\nuser: And?\nassistant: ", True)
    assert asked == [("Hi", "žluť 😀"), ("And?", "")]
    assert seen in env.observation_space


@pytest.mark.parametrize("action", ["x" * 2_001, "a\x00b", "\ud800", None])
def test_text_that_no_stage_can_handle_is_refused(action):
    env = text().unwrapped
    env.reset(seed=0)
    with pytest.raises(InputError, match="not a text of at most 2000 characters"):
        env.step(action)


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_vectors_of_environments_give_every_one_its_prompt(mode):
    more = {"vector_kwargs": {"shared_memory": False}} if mode == "async" else {}
    vector = gymnasium.make_vec("charter/Dialogue-v0", 3, mode, candidates=ROWS, scorer=length, **more)
    observations, _ = vector.reset(seed=1)
    alone = [dialogue().reset(seed=seed)[0] for seed in (1, 2, 3)]
    assert list(observations) == alone
    _, rewards, terminated, _, _ = vector.step(np.array([0, 1, 2]))
    assert rewards.tolist() == [length(prompt, word) for prompt, word in zip(alone, ROWS[0]["responses"], strict=True)]
    assert terminated.all()
    vector.close()
    vector = gymnasium.make_vec("charter/Text-v0", 2, mode, prompts=["Hi"], scorer=length, user=["And?"], **more)
    vector.reset(seed=1)
    assert vector.step(("ž", ""))[0] == ("user: Hi\nassistant: ž\nuser: And?", "user: Hi\nassistant: \nuser: And?")
    vector.close()


def test_shared_memory_would_freeze_the_texts_so_it_is_refused_and_words_as_numbers_pass_through_it():
    with pytest.raises(ValueError, match="shared_memory=False"):
        gymnasium.make_vec("charter/Dialogue-v0", 2, "async", candidates=ROWS, scorer=length)
    wrap = charter.environments.WordsObservation
    vector = gymnasium.make_vec("charter/Dialogue-v0", 2, "async", wrappers=[wrap], candidates=ROWS, scorer=length)
    observations, _ = vector.reset(seed=1)
    vector.close()
    assert observations.shape == (2, 4, 256)
    assert (observations[1] == wrap(dialogue()).reset(seed=2)[0]).all()
    assert observations[0, 1:].sum(axis=1).tolist() == [1, 2, 1]  # Yes; No way; Maybe


def test_candidates_come_from_a_folder_of_feedback_a_table_or_a_list(tmp_path):
    prompts = [Prompt.ask("Lamp?", tags=["benign"]), Prompt.ask("Door?")]
    words = [["Yes.", "No."], ["Open.", "Shut."]]
    responses = [Response(prompt_id=prompt.id, model="m", text=word, finish_reason="stop",
                          generation=Generation(seed=seed, temperature=1.0))
                 for prompt, two in zip(prompts, words, strict=True) for seed, word in enumerate(two)]  # fmt: skip
    write_jsonl(tmp_path / "run/prompts/prompts.jsonl", prompts)
    write_jsonl(tmp_path / "run/feedback/responses.jsonl", responses)
    rows = [{"prompt": p.last_turn, "response": word} for p, two in zip(prompts, words, strict=True) for word in two]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected = [("Lamp?", ("Yes.", "No.")), ("Door?", ("Open.", "Shut."))]
    listed = [{"prompt": p, "responses": two} for p, two in zip(prompts, words, strict=True)]
    places = [tmp_path / "run", tmp_path / "run/feedback", tmp_path / "run/feedback/responses.jsonl", tmp_path / "rows.jsonl"]
    for source in [*map(str, places), listed]:
        assert [(row.prompt.last_turn, row.responses) for row in candidates_of(source)] == expected
    assert candidates_of(listed)[0].prompt.tags == ("benign",)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "the prompts have no responses"),
        ([{"prompt": "a", "responses": ["b"]}], "the prompts have 1 responses"),
        ([{"prompt": "a", "responses": ["b", "c"]}, {"prompt": "d", "responses": ["b", "c", "e"]}], "have 2 or 3 responses"),
        ([{"prompt": "a", "responses": "bc"}], "item 1, field 'responses': must be a list of texts"),
        ([{"prompt": "a", "responses": ["b", 3]}], r"item 1, field 'responses\.1': must be a text"),
        ([{"responses": ["b", "c"]}], "item 1, field 'prompt': missing"),
    ],
)
def test_candidates_that_cannot_be_used_are_named(rows, words):
    with pytest.raises(InputError, match=words):
        candidates_of(rows)


def test_every_source_of_rewards_that_a_recipe_names_gives_rewards(tmp_path, monkeypatch, random_llama, finished_run):
    (tmp_path / "mine.py").write_text("def score(prompt, response):\n    return len(response)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    classifier = save_random_classifier(tmp_path / "classifier")
    texts = ROWS[0]["responses"]
    rewards = {
        name: dialogue(scorer=name).unwrapped.reward(Prompt.ask("Lamp?", tags=["red_team"]), texts)
        for name in ("python:mine:score", f"classifier:{classifier}:kind", f"judge:{random_llama}", str(finished_run),
                     "refusal-words", finished_run)
    }  # fmt: skip
    assert rewards["python:mine:score"] == [3, 6, 5]
    assert rewards[f"classifier:{classifier}:kind"] == Classifier(str(classifier), "kind").logits(texts).tolist()
    assert rewards["refusal-words"] == [0.0, 0.0, 0.0]
    assert rewards[finished_run] == rewards[str(finished_run)]
    assert all(np.isfinite(values).all() and len(set(values)) == 3 for name, values in rewards.items() if name != "refusal-words")


@pytest.mark.parametrize(
    ("scorer", "words"),
    [
        ("nowhere", "nowhere: reward_model.json is missing"),
        ("judge:endpoint:big", "is named in a recipe, and an environment has none; use judge:FOLDER"),
        ("judge:sft", "is named in a recipe, and an environment has none; use judge:FOLDER"),
        ("python:mine", "use python:module:function"),
        ("classifier:folder", "use classifier:FOLDER:LABEL"),
    ],
)
def test_a_scorer_that_cannot_be_used_is_named(scorer, words):
    with pytest.raises(InputError, match=words):
        dialogue(scorer=scorer)


def test_actions_prompts_and_options_that_do_not_exist_are_named():
    env = dialogue().unwrapped
    with pytest.raises(InputError, match="unknown prompt 5; use 0 to 4"):
        env.reset(options={"index": 5})
    env.reset(seed=0)
    with pytest.raises(InputError, match="action 3; use 0 to 2"):
        env.step(3)
    with pytest.raises(InputError, match="the prompts are missing"):
        text(prompts=[])
    with pytest.raises(InputError, match="one for each further turn"):
        text(user="And?")


def test_a_conversation_is_shown_turn_by_turn():
    turns = (Message(role="user", content="Lamp?"), Message(role="assistant", content="Which?"),
             Message(role="user", content="The red one."))  # fmt: skip
    env = text(prompts=[Prompt(messages=turns)])
    assert env.reset(seed=0)[0] == "user: Lamp?\nassistant: Which?\nuser: The red one."


sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))


def test_the_deep_q_network_learns_to_hold_the_pole():
    import cartpole_dqn

    q, curve = cartpole_dqn.train(seed=0, steps=6_000, check_every=1_500)
    untrained = cartpole_dqn.returns(cartpole_dqn.network(), 20, seed=5).mean()
    assert len(curve) <= 4
    assert cartpole_dqn.returns(q, 20, seed=5).mean() > max(3 * untrained, 60)


def test_q_learning_beats_a_random_choice_on_new_prompts_and_the_table_does_not():
    import dialogue_q_learning as example

    seen, new = (example.make(example.sampled_candidates(split, n)) for split, n in (("train", 80), ("test", 60)))
    gains = {}
    for agent in (example.Table(), example.Network(np.random.default_rng(0))):
        example.train(agent, seen, 1_000, seed=0)
        for part, env in (("seen", seen), ("new", new)):
            rewards = example.evaluate(lambda *state: int(agent.q(*state).argmax()), env)  # noqa: B023
            gain = rewards[:, 0] - rewards[:, 1]
            gains[type(agent).__name__, part] = gain.mean() / (gain.std(ddof=1) / np.sqrt(len(gain)))
    assert min(gains["Table", "seen"], gains["Network", "seen"], gains["Network", "new"]) > 3
    assert gains["Table", "new"] < 3


def test_an_agent_of_stable_baselines3_learns_on_the_same_environment(monkeypatch, capsys):
    pytest.importorskip("stable_baselines3")
    import dialogue_sb3

    monkeypatch.setattr(sys, "argv", ["dialogue_sb3.py", "--prompts", "40", "--held-out", "20", "--steps", "3000"])
    dialogue_sb3.main()
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 4
    assert float(rows[2].split("|")[-2]) > 3


def test_tic_tac_toe_loses_less_the_longer_it_learns():
    import tic_tac_toe as game

    assert game.value(game.EMPTY) == 0
    assert game.value((1, 1, 0, -1, -1, 0, 0, 0, 0)) == 1
    assert game.perfect_moves((-1, -1, 0, 1, 0, 0, 0, 0, 1)) == [2]
    policy, curve = game.train(seed=0, steps=40)
    assert np.mean(curve[-5:]) < 0.8 * np.mean(curve[:5])
    won, drawn, lost = game.play_out(policy, game.perfect_moves)
    assert won == 0  # nobody beats the perfect player
    assert drawn + lost > 0


def test_the_code_of_the_page_runs_and_prints_what_the_page_shows(capsys):
    page = (Path(__file__).parents[1] / "docs/gym.md").read_text()
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE):
        exec(block, names)
    shown = re.search(r"^print\(observation\)\n((?:# .*\n)+)", page, flags=re.MULTILINE).group(1)
    assert capsys.readouterr().out == shown.replace("# ", "")
    names["several"].close()
