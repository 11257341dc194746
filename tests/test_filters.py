"""Top-p, top-k and min-p leave the tokens that transformers leaves, seeds belong to prompts, and off is off to the byte."""

import pytest
import torch
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from charter.constitution.revise import respond
from charter.errors import InputError
from charter.models.sampling.filters import ALL_TOKENS, filtered_, largest
from charter.models.sampling.generate import pick
from charter.models.sampling.sampler import LocalSampler
from charter.models.trunk import load_trunk
from charter.recipe.files import load_recipe
from charter.recipe.settings import SamplingSettings
from charter.records import Filters, Generation, Prompt

WARPERS = {"top_k": TopKLogitsWarper, "top_p": TopPLogitsWarper, "min_p": MinPLogitsWarper}  # in transformers' order
PROMPTS = [Prompt.ask(text) for text in ("How do I mend the car?", "Why?", "How do I clean the lamp of Anna?")]


def rows(vocabulary: int, spread: float) -> torch.Tensor:
    return spread * torch.randn(16, vocabulary, generator=torch.Generator().manual_seed(vocabulary))


@pytest.mark.parametrize("vocabulary", [300, 4096])
@pytest.mark.parametrize("spread", [0.3, 1.0, 4.0])
@pytest.mark.parametrize(
    "filters",
    [{"top_k": 1}, {"top_k": 200}, {"top_k": 9999}, {"top_p": 0.01}, {"top_p": 0.5}, {"top_p": 0.95}, {"top_p": 0.999},
     {"min_p": 0.1}, {"min_p": 1.0}, {"top_k": 20, "top_p": 0.8}, {"top_k": 150, "top_p": 0.9, "min_p": 0.05}],
)  # fmt: skip
def test_the_tokens_that_are_left_are_those_of_transformers(vocabulary, spread, filters):
    logits = rows(vocabulary, spread)
    theirs = logits
    for name, warper in WARPERS.items():
        if name in filters:
            theirs = warper(filters[name])(None, theirs)
    ours = filtered_(logits.softmax(-1), Filters(**filters))
    assert torch.equal(ours > 0, theirs > -torch.inf)
    assert torch.allclose(ours / ours.sum(1, keepdim=True), theirs.softmax(-1), atol=1e-6)


@pytest.mark.parametrize("n", [1, 7, 64])
def test_the_largest_are_those_of_a_sort(n):
    values = rows(4096, 1.0)
    assert torch.equal(largest(values, n), values.sort(dim=1, descending=True).values[:, :n])


def test_tokens_that_tie_at_the_edge_all_stay():
    probabilities = torch.tensor([[0.4, 0.2, 0.2, 0.2]])
    for filters in (Filters(top_k=2), Filters(top_p=0.5), Filters(min_p=0.5)):
        assert (filtered_(probabilities.clone(), filters) > 0).tolist() == [[True] * 4]


def test_what_is_left_is_drawn_in_proportion_and_scored_as_drawn():
    logits = torch.log(torch.tensor([[0.5, 0.2, 0.3]])).repeat(20_000, 1)
    uniform = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    choice, logprobs = pick(logits, uniform, 1.0, Filters(top_k=2))
    assert (torch.bincount(choice, minlength=3) / 20_000).tolist() == pytest.approx([0.625, 0, 0.375], abs=1e-3)
    assert logprobs.exp().unique().tolist() == pytest.approx([0.375, 0.625])


def test_a_filter_that_leaves_every_token_draws_the_same_tokens():
    logits, uniform = rows(4096, 2.0), torch.linspace(0, 1 - 1e-9, 16, dtype=torch.float64)
    plain, _ = pick(logits, uniform, 1.0)
    for filters in (Filters(top_p=1.0), Filters(top_k=4096), Filters(min_p=1e-12)):
        assert torch.equal(pick(logits, uniform, 1.0, filters)[0], plain)


def test_the_last_uniform_number_draws_a_token_that_is_left():
    logits = torch.tensor([[3.0, 2.0, *[0.0] * 300]])
    choice, logprobs = pick(logits, torch.tensor([1 - 2**-53], dtype=torch.float64), 1.0, Filters(top_k=2))
    assert choice.tolist() == [1]
    assert torch.isfinite(logprobs).all()


@pytest.fixture(scope="module")
def sampler(random_llama):
    return LocalSampler(load_trunk(str(random_llama)), "base")


@pytest.mark.parametrize("filters", [{"top_p": 0.5}, {"top_k": 3}, {"min_p": 0.5}])
def test_a_filtered_text_depends_on_its_prompt_alone_and_is_recorded(sampler, filters):
    settings = SamplingSettings(max_new_tokens=12, **filters)
    together = respond(sampler, PROMPTS, settings, seed=1, what="test", k=2)
    alone = respond(sampler, PROMPTS[1:2], settings, seed=1, what="test", k=2)
    assert together[1] == alone[0]
    assert together[1][0].generation.model_dump().items() >= filters.items()
    plain = respond(sampler, PROMPTS, SamplingSettings(max_new_tokens=12), seed=1, what="test", k=2)
    assert [r.text for group in plain for r in group] != [r.text for group in together for r in group]


def test_of_the_likeliest_token_alone_the_text_is_greedy(sampler):
    seeds = [[1], [2], [3]]
    asked = [prompt.messages for prompt in PROMPTS]
    greedy = sampler.generate(asked, seeds, temperature=0.0, max_new_tokens=12)
    assert sampler.generate(asked, seeds, temperature=1.0, max_new_tokens=12, filters=Filters(top_k=1)) == greedy


def test_a_filter_that_is_off_leaves_no_byte():
    assert Generation(seed=1, temperature=1.0).model_dump_json() == '{"seed":1,"temperature":1.0,"checkpoint":""}'
    on = Generation(seed=1, temperature=1.0, top_p=0.9)
    assert on.model_dump_json() == '{"seed":1,"temperature":1.0,"checkpoint":"","top_p":0.9}'
    assert Generation.model_validate_json(on.model_dump_json()) == on
    assert SamplingSettings().filters == ALL_TOKENS


# -- the recipe ------------------------------------------------------------------------------------------------------------


def test_shared_filters_hold_for_texts_and_never_for_rollouts(write_recipe, random_llama):
    path = write_recipe(random_llama, sampling={"top_p": 0.9, "top_k": 50}, evaluation={"top_p": 0.8, "top_k": None})
    recipe = load_recipe(path)
    assert recipe.revise.filters == recipe.feedback.filters == Filters(top_p=0.9, top_k=50)
    assert recipe.evaluation.filters == Filters(top_p=0.8)
    assert not hasattr(recipe.rl, "top_p")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rl": {"top_p": 0.9}}, "rollouts are never filtered, so leave out top_p: they are learned from by"),
        ({"evaluation": {"temperature": 0, "top_k": 5}}, "temperature 0 takes the likeliest token, so top_k would not be read"),
        ({"sampling": {"top_p": 0}}, "sampling.top_p"),
        ({"sampling": {"min_p": 1.5}}, "sampling.min_p"),
        ({"sampling": {"top_k": 0}}, "sampling.top_k"),
    ],
)
def test_filters_that_mean_nothing_are_refused_in_one_line(write_recipe, random_llama, changes, words):
    with pytest.raises(InputError) as caught:
        load_recipe(write_recipe(random_llama, **changes))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
