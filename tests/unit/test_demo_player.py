"""The player against a small server of its own that speaks the OpenAI stream."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tieredkv.demo.failure import DemoFailed
from tieredkv.demo.player import Player
from tieredkv.demo.workload import Turn


@dataclass
class Server:
    """Answers every request with the given events; keeps what was asked."""

    events: list[dict[str, Any]]
    status: int = 200
    asked: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""


def _token(text: str, token_id: int, *logprobs: float) -> dict[str, Any]:
    tops = [{"token": "x", "logprob": logprob, "bytes": []} for logprob in logprobs]
    return {
        "id": "chatcmpl-1",
        "choices": [
            {
                "index": 0,
                "delta": {"content": text},
                "logprobs": {"content": [{"token": text, "logprob": logprobs[0], "top_logprobs": tops}]},
                "token_ids": [token_id],
            }
        ],
    }


ROLE = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}], "prompt_token_ids": [1]}
USAGE = {"choices": [], "usage": {"prompt_tokens": 12, "completion_tokens": 2}}
GOOD = [ROLE, _token("a", 7, -0.5, -0.9), _token("b", 8, -0.1, -3.0), USAGE]


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            server.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(server.status)
            self.end_headers()
            for event in server.events:
                self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
            self.wfile.write(b"data: [DONE]\n\n")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        server.url = f"http://127.0.0.1:{listener.server_address[1]}"
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            listener.shutdown()
            thread.join()


def test_an_answer_holds_tokens_text_and_margin() -> None:
    with serving(Server(GOOD)) as server:
        (answer,) = Player("S", answer_tokens=2).play(server.url, [Turn(0, "Q")], lambda: None)
    assert answer.token_ids == (7, 8)
    assert answer.text == "ab"
    assert answer.prompt_tokens == 12
    assert answer.margin == pytest.approx(0.4)
    assert 0 < answer.ttft_s <= answer.total_s


def test_each_turn_sends_the_whole_conversation_again() -> None:
    played: list[None] = []
    turns = [Turn(0, "Q0"), Turn(1, "Q1"), Turn(0, "Q2")]
    with serving(Server(GOOD)) as server:
        Player("S", answer_tokens=2).play(server.url, turns, lambda: played.append(None))
    said = [[message["content"] for message in asked["messages"]] for asked in server.asked]
    assert said == [["S", "Q0"], ["S", "Q1"], ["S", "Q0", "ab", "Q2"]]
    assert all(asked["temperature"] == 0 for asked in server.asked)
    assert len(played) == 3


@pytest.mark.parametrize(
    ("server", "complaint"),
    [
        (Server([], status=500), "answered 500"),
        (Server([ROLE, USAGE]), "without a token"),
        (Server([ROLE, {"error": {"message": "out of memory"}}]), "out of memory"),
        (Server([{"choices": 3}]), "failed"),
    ],
)
def test_a_failing_server_is_a_failed_demo(server: Server, complaint: str) -> None:
    with serving(server), pytest.raises(DemoFailed, match=complaint):
        Player("S", answer_tokens=2).play(server.url, [Turn(0, "Q")], lambda: None)


def test_a_server_that_is_gone_is_a_failed_demo() -> None:
    with serving(Server(GOOD)) as server:
        pass
    with pytest.raises(DemoFailed, match=server.url):
        Player("S", answer_tokens=2).play(server.url, [Turn(0, "Q")], lambda: None)


def test_warming_up_leaves_the_histories_alone() -> None:
    with serving(Server(GOOD)) as server:
        player = Player("S", answer_tokens=2)
        assert player.warm_up(server.url) == 24
        player.play(server.url, [Turn(0, "Q")], lambda: None)
    assert [message["content"] for message in server.asked[-1]["messages"]] == ["S", "Q"]
