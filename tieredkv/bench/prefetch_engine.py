"""A vLLM engine for `bench.prefetch`, in a process of its own: `python -m tieredkv.bench.prefetch_engine JOB`.

The job is JSON: {"model": PATH, "transfer": {...} or null, "options": {...}}. Then one JSON object for each
line of standard input, {"prompts": [[token, ...], ...], "tokens": N}: all prompts are queued at once, and
the answer says of each when its first token came, counted from then.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from os import environ
from pathlib import Path
from time import perf_counter, sleep
from typing import IO, Any, Final, Self, cast

from tieredkv.errors import Unreachable

END_DEADLINE_S: Final = 10.0
LOG_BYTES: Final = 2000
YIELD_S: Final = 0.001


@dataclass(frozen=True, slots=True)
class Answers:
    """Of prompts queued together, in their order: seconds to the first token, tokens, prompt tokens not computed."""

    ttft_s: list[float]
    tokens: list[list[int]]
    cached: list[int]


class EngineProcess:
    """The side that asks. Engines may start side by side: `wait_ready` is apart."""

    def __init__(self, job: dict[str, object], log: Path) -> None:
        self._log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tieredkv.bench.prefetch_engine", json.dumps(job)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=_environ(),
                text=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(BrokenPipeError):
            self._pipe(self._process.stdin).close()
        try:
            self._process.wait(END_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def wait_ready(self) -> None:
        """Until it can be asked. Raises Unreachable."""
        self._answer()

    def ask(self, prompts: Sequence[Sequence[int]], tokens: int) -> Answers:
        """Queue all prompts at once, `tokens` tokens of answer each. Raises Unreachable."""
        pipe = self._pipe(self._process.stdin)
        with suppress(BrokenPipeError):
            pipe.write(json.dumps({"prompts": prompts, "tokens": tokens}) + "\n")
            pipe.flush()
        said = self._answer()
        return Answers(said["ttft_s"], said["tokens"], said["cached"])

    def _answer(self) -> dict[str, Any]:
        for line in self._pipe(self._process.stdout):
            if line.startswith("{"):
                said: dict[str, Any] = json.loads(line)
                return said
        raise Unreachable(f"vLLM ended: {self._log.read_text(errors='replace')[-LOG_BYTES:]}")

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe


def _environ() -> dict[str, str]:
    """One process and one thread of computing, whatever the user set."""
    kept = {name: value for name, value in environ.items() if not name.startswith(("TIEREDKV_", "VLLM_"))}
    return kept | {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",
    }


def main() -> None:
    """The side that answers."""
    from vllm import LLM

    job = json.loads(sys.argv[1])
    llm = LLM(model=job["model"], kv_transfer_config=job["transfer"], **job["options"])
    print("{}", flush=True)
    for number, line in enumerate(sys.stdin):
        asked = json.loads(line)
        print(json.dumps(_answer(llm, number, asked["prompts"], asked["tokens"])), flush=True)


def _answer(llm: Any, number: int, prompts: list[list[int]], tokens: int) -> dict[str, object]:
    from vllm import SamplingParams

    # What vLLM's own cache holds of the round before is not asked about.
    llm.reset_prefix_cache()
    engine = llm.llm_engine
    sampling = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    places: dict[str, int] = {}
    start = perf_counter()
    for place, prompt in enumerate(prompts):
        places[f"{number}-{place}"] = place
        engine.add_request(f"{number}-{place}", {"prompt_token_ids": prompt}, sampling)
    ttft_s = [0.0] * len(prompts)
    said: list[list[int]] = [[] for _ in prompts]
    cached = [0] * len(prompts)
    while engine.has_unfinished_requests():
        outputs = engine.step()
        if not outputs:
            # As the loop of vLLM's own engine process, which this one stands for: a thread that copies KV would not
            # get the interpreter's lock from one that spins.
            sleep(YIELD_S)
        for output in outputs:
            place = places[output.request_id]
            said[place] = list(cast("list[int]", output.outputs[0].token_ids))
            cached[place] = output.num_cached_tokens or 0
            if said[place] and not ttft_s[place]:
                ttft_s[place] = perf_counter() - start
    return {"ttft_s": ttft_s, "tokens": said, "cached": cached}


if __name__ == "__main__":
    main()
