"""Plays turns against an OpenAI server, one at a time, streaming, and notes what came back and when."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final

import aiohttp
import msgspec

from tieredkv.demo.failure import DemoFailed
from tieredkv.demo.server import MODEL_NAME
from tieredkv.demo.workload import Turn

ANSWER_WAIT_S: Final = 120.0
WARM_UP_TEXT: Final = "Hello."
WARM_UP_ROUNDS: Final = 2


@dataclass(frozen=True, slots=True)
class Answer:
    """What one turn brought. `margin` is the smallest lead of a chosen token, in log probability."""

    conversation: int
    token_ids: tuple[int, ...]
    text: str
    prompt_tokens: int
    ttft_s: float
    total_s: float
    margin: float


class _Delta(msgspec.Struct):
    content: str | None = None


class _Top(msgspec.Struct):
    logprob: float


class _TokenLogprobs(msgspec.Struct):
    top_logprobs: list[_Top]


class _Logprobs(msgspec.Struct):
    content: list[_TokenLogprobs] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta
    token_ids: list[int] | None = None
    logprobs: _Logprobs | None = None

    def margins(self) -> list[float]:
        """Lead of the best over the second best token, for each token of this piece."""
        tokens = (self.logprobs.content if self.logprobs else None) or []
        tops = [[top.logprob for top in token.top_logprobs] for token in tokens]
        return [max(top) - min(top) for top in tops if len(top) >= 2]


class _Usage(msgspec.Struct):
    prompt_tokens: int


class _Event(msgspec.Struct):
    """What we read of one event of the stream."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_decoder: Final = msgspec.json.Decoder(_Event)


class Player:
    """Keeps the conversations' histories; each turn sends the whole conversation again, as clients do.

    Turns are played strictly one after the other. Requests that share a batch change each other's float
    rounding, and a nearly tied greedy choice could then fall differently in the two runs that are compared;
    it also keeps the times to first token free of queueing.
    """

    def __init__(self, system: str, *, answer_tokens: int) -> None:
        self._system = {"role": "system", "content": system}
        self._histories: dict[int, list[dict[str, str]]] = {}
        self._answer_tokens = answer_tokens

    def play(self, url: str, turns: Iterable[Turn], on_answer: Callable[[], None]) -> list[Answer]:
        """Ask all turns in order; `on_answer` is called after each. Raises DemoFailed."""
        return asyncio.run(self._play(url, turns, on_answer))

    def warm_up(self, url: str) -> int:
        """Short requests that have the server do its first-time work; returns their prompt tokens.

        They are shorter than any chunk, so they leave nothing in a warm tier.
        """
        player = Player("Warm up.", answer_tokens=4)
        turns = [Turn(conversation, WARM_UP_TEXT) for conversation in range(WARM_UP_ROUNDS)]
        return sum(answer.prompt_tokens for answer in player.play(url, turns, lambda: None))

    async def _play(self, url: str, turns: Iterable[Turn], on_answer: Callable[[], None]) -> list[Answer]:
        answers: list[Answer] = []
        timeout = aiohttp.ClientTimeout(total=ANSWER_WAIT_S)
        async with aiohttp.ClientSession(url, timeout=timeout) as session:
            for turn in turns:
                history = self._histories.setdefault(turn.conversation, [self._system])
                history.append({"role": "user", "content": turn.text})
                try:
                    answer = await self._ask(session, turn.conversation, history)
                except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError) as error:
                    what = str(error) or type(error).__name__
                    raise DemoFailed(f"demo: a request to {url} failed: {what}") from error
                history.append({"role": "assistant", "content": answer.text})
                answers.append(answer)
                on_answer()
        return answers

    async def _ask(self, session: aiohttp.ClientSession, conversation: int, messages: list[dict[str, str]]) -> Answer:
        body = {
            "model": MODEL_NAME,
            "messages": messages,
            "max_tokens": self._answer_tokens,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": 2,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
        }
        token_ids: list[int] = []
        text: list[str] = []
        margins: list[float] = []
        prompt_tokens = 0
        first_s: float | None = None
        start_s = monotonic()
        async with session.post("/v1/chat/completions", json=body) as response:
            if response.status != 200:
                raise DemoFailed(f"demo: the server answered {response.status}: {(await response.text())[:300]}")
            async for event in _events(response):
                if event.error is not None:
                    raise DemoFailed(f"demo: the server broke off an answer: {event.error}")
                if event.usage is not None:
                    prompt_tokens = event.usage.prompt_tokens
                for choice in event.choices:
                    if choice.token_ids:
                        first_s = first_s or monotonic()
                        token_ids += choice.token_ids
                        text.append(choice.delta.content or "")
                        margins += choice.margins()
        end_s = monotonic()
        if first_s is None:
            raise DemoFailed("demo: the server answered without a token")
        return Answer(
            conversation=conversation,
            token_ids=tuple(token_ids),
            text="".join(text),
            prompt_tokens=prompt_tokens,
            ttft_s=first_s - start_s,
            total_s=end_s - start_s,
            margin=min(margins, default=0.0),
        )


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[_Event]:
    """The documents of a stream of server-sent events."""
    async for line in response.content:
        if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
            yield _decoder.decode(line.removeprefix(b"data: "))
