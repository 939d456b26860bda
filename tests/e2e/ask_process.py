"""A second engine, in a process of its own: reads a job as JSON from standard input, prints answers as JSON.

Job: {"model": PATH, "transfer": {...} | null, "options": {...}, "questions": [[token, ...], ...], "tokens": N}.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DEADLINE_S = 240.0


def ask_in_process(
    model: Path,
    questions: Sequence[Sequence[int]],
    transfer: Mapping[str, Any] | None,
    *,
    tokens: int = 8,
    environ: Mapping[str, str] | None = None,
    **options: Any,
) -> list[Any]:
    """Start a process with an engine, ask, end it; the answers as `Answer`s."""
    from tests.e2e.engines import Answer

    job = {"model": str(model), "transfer": transfer, "options": options, "questions": questions, "tokens": tokens}
    ran = subprocess.run(
        [sys.executable, "-m", "tests.e2e.ask_process"],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env=os.environ | dict(environ or {}),
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    rows = json.loads(ran.stdout.strip().splitlines()[-1])
    return [Answer(tuple(row["tokens"]), tuple(row["logprobs"]), row["cached_tokens"]) for row in rows]


def main() -> None:
    from tests.e2e.engines import ask, engine

    job = json.load(sys.stdin)
    with engine(Path(job["model"]), job["transfer"], **job["options"]) as llm:
        answers = ask(llm, job["questions"], tokens=job["tokens"])
    rows = [{"tokens": a.tokens, "logprobs": a.logprobs, "cached_tokens": a.cached_tokens} for a in answers]
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
