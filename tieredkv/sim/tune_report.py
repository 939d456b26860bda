"""The outcome of a search as one page: the verdict, tables, and a picture inside."""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Final

from tieredkv.config.units import approximate_size
from tieredkv.errors import ConfigError
from tieredkv.sim.figure import png_bytes
from tieredkv.sim.tune_plot import draw_tuning
from tieredkv.sim.tune_result import Point, Tuning, Verdict, marginal, policy_words

_STYLE: Final = (
    "body{font:15px/1.5 sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;margin:1em 0}td,th{border:1px solid #ccc;padding:.2em .7em;text-align:right}"
    "th{background:#f3f3f3}td:first-child,th:first-child{text-align:left}tr.chosen{background:#e8f4e8;font-weight:bold}"
    ".yes{color:#17631b}.no{color:#a11}img{width:100%}pre{background:#f3f3f3;padding:1em;overflow:auto}"
)
_ABOUT_COLD: Final = (
    "Replayed through all three tiers, with links that have a speed and a queue, and promotions that begin at the "
    "arrival of a request. TTFT is the same prediction without queueing; KV ready is the mean time from arrival to "
    "all KV on the GPU in that replay, waiting for the GPU included."
)


def write_report(tuning: Tuning, recipe: str, config_text: str, path: Path) -> None:
    """Write an HTML page, or only the picture for a name in .png. Raises ConfigError."""
    figure = draw_tuning(tuning)
    content = png_bytes(figure) if path.suffix == ".png" else _page(tuning, recipe, config_text, png_bytes(figure))
    try:
        path.write_bytes(content)
    except OSError as error:
        raise ConfigError(f"--report {path}: {error.strerror}; name a file that you may write") from None


def _page(tuning: Tuning, recipe: str, config_text: str, picture: bytes) -> bytes:
    image = base64.b64encode(picture).decode()
    about = (
        f"Chosen on the first {tuning.split:.0%} of the time ({tuning.requests[0]:,} requests), reported on the rest "
        f"({tuning.requests[1]:,} requests), which no choice has seen. TTFT is predicted: prefill of what is missing "
        "and loads of what is not, without queueing. Hit rates are of full blocks."
    )
    bounds = (
        f"An infinite cache would hit {tuning.infinite_hit_rate[1]:.1%}. MIN is Belady's, which knows the future, "
        "with the memory of the GPU and warm together: no policy beats it."
    )
    least = ["-", *(f"{rate:.1%}" for rate in tuning.min_hit_rates)]
    body = [
        f"<h1>{escape(tuning.trace)}: what memory is worth</h1>",
        f"<p>{about}</p>",
        *_verdict(f"Warm tier of {approximate_size(tuning.chosen.warm_bytes)}", tuning.warm),
    ]
    if tuning.cold is not None:
        body += _verdict(f"Cold tier of {approximate_size(tuning.cold.chosen.cold_bytes)}", tuning.cold.verdict)
    body += [
        f'<img alt="hit rate, TTFT and gains over memory" src="data:image/png;base64,{image}">',
        "<h2>Warm tier</h2>",
        _sizes([tuning.without, *tuning.curve], tuning.chosen, ("MIN", least)),
        f"<p>{bounds}</p>",
    ]
    if tuning.cold is not None:
        ready = [f"{seconds * 1e3:.0f} ms" for seconds in tuning.cold.ready_s]
        points = [tuning.cold.without, *tuning.cold.curve]
        body += [
            "<h2>Cold tier behind it</h2>",
            _sizes(points, tuning.cold.chosen, ("KV ready, with queueing", ready)),
            f"<p>{_ABOUT_COLD}</p>",
        ]
    body += [
        "<h2>Policies at the chosen size, first part</h2>",
        _policies(tuning),
        "<h2>Configuration</h2>",
        f"<pre>{escape(config_text)}</pre>",
        "<h2>Recipe</h2>",
        f"<pre>{escape(recipe)}</pre>",
    ]
    head = f'<meta charset="utf-8"><title>{escape(tuning.trace)}</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n'.encode()


def _verdict(title: str, verdict: Verdict) -> list[str]:
    kind, word = ("yes", "worth it") if verdict.worth_it else ("no", "not worth it")
    sentences = " ".join(escape(reason) for reason in verdict.reasons)
    return [f'<h2>{escape(title)}: <span class="{kind}">{word}</span></h2>', f"<p>{sentences}</p>"]


def _sizes(points: Sequence[Point], chosen: Point, more: tuple[str, Sequence[str]]) -> str:
    heads = ["size", "chunks", "hits in GPU", "warm", "cold", "all"]
    heads += [more[0], "mean TTFT", "p99", "first part", "ms per GiB more", "GPU s/h per GiB more"]
    rows: list[tuple[bool, list[str]]] = []
    for number, (point, gains) in enumerate(zip(points, [None, *marginal(points)], strict=True)):
        figures = point.held_out
        cold = points[-1].cold_bytes > 0
        size_bytes = point.cold_bytes if cold else point.warm_bytes
        cells = [
            approximate_size(size_bytes) if number else "without",
            f"{point.cold_chunks if cold else point.warm_chunks:,}",
        ]
        cells += [f"{figures.hot_hit_rate:.1%}", f"{figures.warm_hit_rate:.1%}", f"{figures.cold_hit_rate:.1%}"]
        cells.append(f"{figures.hit_rate:.1%}")
        cells.append(more[1][number])
        cells += [f"{figures.mean_ttft_s * 1e3:.0f} ms", f"{figures.p99_ttft_s * 1e3:.0f} ms"]
        cells.append(f"{point.train.mean_ttft_s * 1e3:.0f} ms")
        cells += ["-", "-"] if gains is None else [f"{gains[0]:.3g}", f"{gains[1]:.3g}"]
        rows.append((point == chosen, cells))
    return _table(heads, rows)


def _policies(tuning: Tuning) -> str:
    rows = [
        (
            each.chosen,
            [
                policy_words(each.policy),
                f"{each.hit_rate:.2%}",
                f"{each.mean_ttft_s * 1e3:.1f} ms",
                "the default" if each.sure_gain is None else f"{each.sure_gain:+.2%}",
            ],
        )
        for each in tuning.candidates
    ]
    return _table(["policy", "hits", "mean TTFT", "sure gain"], rows)


def _table(heads: Iterable[str], rows: Iterable[tuple[bool, list[str]]]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join(
        f"<tr{' class=chosen' if chosen else ''}>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for chosen, cells in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"
