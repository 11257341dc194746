import pytest

from charter.models.chat_template import decode_response, encode_prompt, encode_response
from charter.models.load import load_tokenizer
from charter.models.packing import Tokens, pack
from charter.records import Message
from conftest import save_tokenizer

TRICKY = ["plain", "with: colon", "two\nlines", "Human: no\n\nAssistant: yes", "<|end|>", "a<|pad|>b", "<|assistant|>x",
          "漢字 и emoji 🙂", " leading and trailing ", ""]  # fmt: skip


@pytest.fixture(scope="module", params=[False, True], ids=["own pad", "pad = eos"])
def tokenizer(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder, pad_is_eos=request.param)
    return load_tokenizer(str(folder))


@pytest.mark.parametrize("text", TRICKY)
def test_a_response_comes_back_as_it_went_in_and_ends_once(tokenizer, text):
    ids = encode_response(tokenizer, text)
    assert ids.count(tokenizer.eos_token_id) == 1
    assert ids[-1] == tokenizer.eos_token_id
    assert decode_response(tokenizer, ids) == text


@pytest.mark.parametrize("text", TRICKY)
def test_the_mask_covers_exactly_the_response(tokenizer, text):
    row = Tokens(encode_prompt(tokenizer, [Message(role="user", content="q: " + text)]), encode_response(tokenizer, text))
    longer = Tokens([5] * 40, [6])
    packed = pack([row, longer])
    masked = packed.targets[0][packed.mask[0]].tolist()
    assert masked == list(row.response)
    assert len(packed.ids) == len(row) + len(longer)


def test_a_base_model_without_a_template_gets_transcripts(tmp_path):
    save_tokenizer(tmp_path, template=False)
    tokenizer = load_tokenizer(str(tmp_path))
    ids = encode_prompt(tokenizer, [Message(role="user", content="Hi")])
    assert tokenizer.decode(ids) == "\n\nHuman: Hi\n\nAssistant:"


def test_a_double_beginning_is_avoided(tmp_path):
    save_tokenizer(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    tokenizer.bos_token = "<|user|>"
    tokenizer.add_bos_token = True
    ids = encode_prompt(tokenizer, [Message(role="user", content="Hi")])
    assert ids.count(tokenizer.bos_token_id) == 1
