"""A byte-level tokenizer with a chat template, written on the spot so that the server runs offline.

Every byte is one token and nothing is merged: text and tokens map one to one, so a conversation that
is sent again as text has the very tokens, hence the very cache keys, of the turn before.
"""

import json
from pathlib import Path
from string import ascii_letters, digits
from typing import Final

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

BEGIN: Final = "<|begin|>"
END: Final = "<|end|>"
SYSTEM: Final = "<|system|>"
USER: Final = "<|user|>"
ASSISTANT: Final = "<|assistant|>"
SPECIALS: Final = (BEGIN, END, SYSTEM, USER, ASSISTANT)

VOCAB_TOKENS: Final = 320
"""Rows of a model's embedding that holds every token (the specials and 256 bytes, rounded up)."""

CHAT_TEMPLATE: Final = (
    "{{ '" + BEGIN + "' }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '" + END + "' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + ASSISTANT + "' }}{% endif %}"
)


def _vocabulary() -> dict[str, int]:
    # The alphabet's characters stand for bytes; sorted, so that ids never depend on the library's order.
    return {token: index for index, token in enumerate((*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet())))}


def sayable_tokens() -> list[int]:
    """Ids of the tokens that a demo model may answer with: letters, digits and a space.

    Any sequence of them is valid text, and no end token is among them, so every answer has full length.
    """
    vocabulary = _vocabulary()
    space = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(" ")[0][0]
    return sorted(vocabulary[character] for character in (*ascii_letters, *digits, space))


def make_tokenizer(path: Path, *, context_tokens: int) -> Path:
    """Write tokenizer.json and tokenizer_config.json into the directory `path`; return `path`."""
    tokenizer = Tokenizer(models.BPE(vocab=_vocabulary(), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = [AddedToken(special, special=True) for special in SPECIALS]
    tokenizer.add_special_tokens(specials)  # pyright: ignore[reportUnknownMemberType] - its stub says `list`
    path.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "chat_template": CHAT_TEMPLATE,
        "model_max_length": context_tokens,
        "clean_up_tokenization_spaces": False,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
    return path
