"""The demo's tokenizer: text and tokens map one to one, so a conversation's prefix keeps its tokens."""

import json
from pathlib import Path

from jinja2 import Template
from tokenizers import Tokenizer

from tieredkv.demo.tokenizer import SPECIALS, VOCAB_TOKENS, make_tokenizer, sayable_tokens


def _load(path: Path) -> Tokenizer:
    return Tokenizer.from_file(str(make_tokenizer(path, context_tokens=100) / "tokenizer.json"))


def test_every_byte_is_one_token(tmp_path: Path) -> None:
    tokenizer = _load(tmp_path)
    text = "Ärger, 42 €?\n" + "".join(map(chr, range(32, 127)))
    ids = tokenizer.encode(text).ids
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text


def test_all_tokens_fit_the_model(tmp_path: Path) -> None:
    assert _load(tmp_path).get_vocab_size() == 256 + len(SPECIALS) <= VOCAB_TOKENS


def test_any_sayable_answer_survives_being_sent_again(tmp_path: Path) -> None:
    tokenizer = _load(tmp_path)
    ids = sayable_tokens() * 2
    assert tokenizer.encode(tokenizer.decode(ids)).ids == ids


def test_a_conversation_is_a_prefix_of_its_continuation(tmp_path: Path) -> None:
    tokenizer = _load(tmp_path)
    template = Template(json.loads((tmp_path / "tokenizer_config.json").read_text())["chat_template"])
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    asked = tokenizer.encode(template.render(messages=messages, add_generation_prompt=True)).ids
    messages += [{"role": "assistant", "content": "aB 3"}, {"role": "user", "content": "And?"}]
    again = tokenizer.encode(template.render(messages=messages, add_generation_prompt=True)).ids
    answer = tokenizer.encode("aB 3").ids
    assert again[: len(asked) + len(answer)] == asked + answer
