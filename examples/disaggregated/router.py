"""A router for disaggregated prefill: one vLLM computes prompts, another one answers.

    python router.py --prefill http://127.0.0.1:8100 --decode http://127.0.0.1:8200 --port 8000

Each request goes to the prefill engine first, with one token to answer: that computes and stores the KV of
its prompt. Then it goes, as it came, to the decode engine, which finds that KV and loads it. Nothing else
has to be told: the key of a chunk is its prompt. When the prefill engine fails, the decode engine computes
the prompt itself.

Only the standard library; one thread for each request. It shows the idea, not how to serve the world.
"""

import argparse
import json
import sys
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

DEADLINE_S = 600.0
PIECE_BYTES = 1 << 16
COMPLETIONS = ("/v1/completions", "/v1/chat/completions")

# A proxy named in the environment is not for these engines.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Router(BaseHTTPRequestHandler):
    """Serves one connection."""

    prefill: ClassVar[str]
    decode: ClassVar[str]

    def do_GET(self) -> None:
        """Models, health and metrics are those of the decode engine."""
        self._forward(urllib.request.Request(self.decode + self.path))  # noqa: S310 - the operator's URL

    def do_POST(self) -> None:
        """Completions are prepared by the prefill engine."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path in COMPLETIONS:
            self._prepare(body)
        self._forward(self._request(self.decode, body))

    def _prepare(self, body: bytes) -> None:
        """Have the prompt computed and stored."""
        try:
            asked: dict[str, Any] = json.loads(body)
            only_prompt = asked | {"max_tokens": 1, "stream": False}
            for unwanted in ("max_completion_tokens", "min_tokens", "stream_options"):
                only_prompt.pop(unwanted, None)
            with _direct.open(
                self._request(self.prefill, json.dumps(only_prompt).encode()), timeout=DEADLINE_S
            ) as answer:
                answer.read()
        except (OSError, ValueError, TypeError) as error:
            # Whatever is wrong with the request, the decode engine will say.
            self.log_message("no prefill: %s", error)

    def _request(self, engine: str, body: bytes) -> urllib.request.Request:
        headers = {"Content-Type": "application/json"}
        if authorization := self.headers.get("Authorization"):
            headers["Authorization"] = authorization
        return urllib.request.Request(engine + self.path, body, headers)  # noqa: S310 - the operator's URL

    def _forward(self, request: urllib.request.Request) -> None:
        """Pass the decode engine's answer on as it comes."""
        try:
            answer = _direct.open(request, timeout=DEADLINE_S)
        except urllib.error.HTTPError as error:
            answer = error  # its refusal is an answer too
        except OSError as error:
            self.send_error(502, f"the decode engine does not answer: {error}")
            return
        with answer:
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.headers.get("Content-Type", "application/json"))
            self.end_headers()
            while piece := answer.read1(PIECE_BYTES):
                self.wfile.write(piece)
                self.wfile.flush()


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prefill", required=True, metavar="URL", help="the engine that computes prompts")
    parser.add_argument("--decode", required=True, metavar="URL", help="the engine that answers")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    chosen = parser.parse_args()
    Router.prefill, Router.decode = chosen.prefill.rstrip("/"), chosen.decode.rstrip("/")
    with ThreadingHTTPServer((chosen.host, chosen.port), Router) as server:
        print(f"routing {chosen.host}:{server.server_address[1]}", file=sys.stderr, flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
