"""The outcome of a search as a configuration file with its reasons."""

import textwrap

from tieredkv.config import PolicyConfig
from tieredkv.config.render import inline_yaml
from tieredkv.config.units import approximate_size, format_size
from tieredkv.sim.tune_result import Tuning

_WIDTH = 100


def tuned_yaml(tuning: Tuning, recipe: str) -> str:
    """A file that `tieredkv config check` accepts. `recipe` is the command that made it."""
    lines = ["# Written by tieredkv tune. Made by:", f"#   {recipe}"]
    chosen, held_out = tuning.chosen, tuning.chosen.held_out
    lines += _comment(
        f"Chosen on the first {tuning.split:.0%} of the time of {tuning.trace} ({tuning.requests[0]:,} requests); "
        f"all figures are of the rest ({tuning.requests[1]:,} requests), which no choice has seen. TTFT is predicted: "
        "prefill of what is missing and loads of what is not, without queueing."
    )
    if not tuning.warm.worth_it:
        lines += [
            "#",
            "# NOT WORTH IT: on this hardware this trace does not pay for a warm tier. Serve without it.",
            "#",
        ]
    lines += ["", "warm:"]
    lines += _comment(*tuning.warm.reasons, indent="  ")
    share = (
        f"Hits: {held_out.hot_hit_rate:.1%} in the GPU, {held_out.warm_hit_rate:.1%} here; "
        f"{tuning.infinite_hit_rate[1]:.1%} is all that any cache could give. "
        f"{chosen.warm_chunks:,} chunks of {tuning.block_tokens} tokens ({approximate_size(tuning.chunk_bytes)})."
    )
    lines += _comment(share, indent="  ")
    lines.append(f"  size: {format_size(chosen.warm_bytes)}")
    lines += ["", "policy:"]
    lines += _comment(_policy_reason(tuning), indent="  ")
    lines += [f"  {key}: {inline_yaml(value)}" for key, value in _policy_keys(tuning.policy).items()]
    if tuning.cold is not None:
        size = approximate_size(tuning.cold.chosen.cold_bytes)
        worth = f"A cold tier of {size} pays." if tuning.cold.verdict.worth_it else "A cold tier is NOT WORTH IT here."
        lines += ["", *_comment(worth, *tuning.cold.verdict.reasons)]
    return "\n".join(lines) + "\n"


def _policy_keys(policy: PolicyConfig) -> dict[str, object]:
    """Its name, and what differs from the defaults."""
    written = policy.model_dump(mode="json", by_alias=True)
    usual = PolicyConfig(name=policy.name).model_dump(mode="json", by_alias=True)
    return {key: value for key, value in written.items() if key == "name" or value != usual[key]}


def _policy_reason(tuning: Tuning) -> str:
    tried = len(tuning.candidates)
    default = next(each for each in tuning.candidates if each.sure_gain is None)
    beside = (
        f"lru gives {tuning.lru.held_out.hit_rate:.1%} of hits and {tuning.lru.held_out.mean_ttft_s * 1e3:.0f} ms "
        f"at this size, this policy {tuning.chosen.held_out.hit_rate:.1%} and "
        f"{tuning.chosen.held_out.mean_ttft_s * 1e3:.0f} ms."
    )
    if default.chosen:
        return f"The default: of {tried} settings none was surely better. {beside}"
    gain = next(each.sure_gain for each in tuning.candidates if each.chosen)
    return f"The best of {tried} settings, surely {gain:.1%} sooner than the default on the first part. {beside}"


def _comment(*sentences: str, indent: str = "") -> list[str]:
    text = " ".join(sentences)
    return [f"{indent}# {line}" for line in textwrap.wrap(text, _WIDTH)]
