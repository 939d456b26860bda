"""Parameters of generated workloads, and the kinds that come with the package.

The shapes are those that studies of production traffic report (Mooncake, FAST'25; KVCache in the Wild,
ATC'25): system prompts shared by many sessions with a skewed popularity, sessions that go on with a
probability that rises with their turns, think times and lengths with heavy (lognormal) tails. The numbers
are round ones of our own, fitted to no trace.
"""

from collections.abc import Mapping
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tieredkv.config.remedy import remedy
from tieredkv.config.source import suggestion
from tieredkv.errors import ConfigError


class Workload(BaseModel):
    """What happens, in words and numbers. `x_median` and `x_sigma` are those of a lognormal distribution."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    sessions_per_s: float = Field(default=1.0, gt=0, le=1e4, description="New sessions a second (Poisson).")
    context_tokens_max: int = Field(default=128_000, ge=1, le=10_000_000, description="Longest prompt.")
    output_tokens_per_s: float = Field(default=50.0, gt=0, le=1e6, description="Speed of an answer.")

    trunks: int = Field(default=8, ge=0, le=100_000, description="System prompts that sessions share; 0 = none.")
    trunk_zipf: float = Field(default=1.0, ge=0, le=5, description="Skew of their popularity: the k-th has k^-zipf.")
    trunk_tokens_median: float = Field(default=800, gt=0, le=1e7, description="Length of a system prompt.")
    trunk_tokens_sigma: float = Field(default=0.8, ge=0, le=5, description="Spread of it.")
    trunk_life_s: float = Field(
        default=0, ge=0, le=1e9, description="Mean time until a system prompt is edited at a random place; 0 = never."
    )

    first_tokens_median: float = Field(default=1000, gt=0, le=1e7, description="Text that a session begins with.")
    first_tokens_sigma: float = Field(default=1.4, ge=0, le=5, description="Spread of it.")
    turn_tokens_median: float = Field(default=150, gt=0, le=1e7, description="Text that each later turn adds.")
    turn_tokens_sigma: float = Field(default=1.2, ge=0, le=5, description="Spread of it.")
    output_tokens_median: float = Field(default=300, gt=0, le=1e7, description="Answer; the next turn repeats it.")
    output_tokens_sigma: float = Field(default=0.8, ge=0, le=5, description="Spread of it.")

    continue_first: float = Field(default=0.4, ge=0, le=1, description="Probability that a first turn is not the last.")
    continue_later: float = Field(default=0.75, ge=0, le=1, description="The same for a turn of a long session.")
    continue_turns: int = Field(default=4, ge=1, le=1000, description="Turns until that is reached, in equal steps.")
    think_s_median: float = Field(default=40, gt=0, le=1e7, description="From an answer to the next turn.")
    think_s_sigma: float = Field(default=1.0, ge=0, le=5, description="Spread of it.")
    pause_share: float = Field(default=0, ge=0, le=1, description="Part of the turns that a pause follows instead.")
    pause_s_median: float = Field(default=300, gt=0, le=1e7, description="Length of a pause.")
    pause_s_sigma: float = Field(default=1.0, ge=0, le=5, description="Spread of it.")
    shift_factor: float = Field(
        default=1.0, gt=0, le=1000, description="Factor on think times and pauses in the second half of the requests."
    )

    documents: int = Field(default=0, ge=0, le=1_000_000, description="Documents to retrieve from; 0 = no retrieval.")
    documents_zipf: float = Field(default=0.8, ge=0, le=5, description="Skew of their popularity.")
    documents_per_prompt_max: int = Field(default=3, ge=1, le=100, description="A session begins with 1 to so many.")
    document_tokens_median: float = Field(default=3000, gt=0, le=1e7, description="Length of a document.")
    document_tokens_sigma: float = Field(default=0.8, ge=0, le=5, description="Spread of it.")

    flood_per_s: float = Field(
        default=0,
        ge=0,
        le=1e4,
        description="Prompts a second that share nothing and never return, in floods; 0 = none.",
    )
    flood_every_s: float = Field(default=900, gt=0, le=1e7, description="From the end of a flood to that of the next.")
    flood_s: float = Field(default=300, gt=0, le=1e7, description="How long a flood lasts.")
    flood_tokens_median: float = Field(default=8000, gt=0, le=1e7, description="Length of such a prompt.")
    flood_tokens_sigma: float = Field(default=0.8, ge=0, le=5, description="Spread of it.")


KINDS: Final[dict[str, tuple[str, Workload]]] = {
    "chat": ("conversations, most of them short, with a few system prompts", Workload()),
    "agentic": (
        "long tool-calling runs: many short steps on a long context, now and then a person's pause",
        Workload(
            sessions_per_s=0.02,
            context_tokens_max=160_000,
            trunks=4,
            trunk_tokens_median=12_000,
            trunk_tokens_sigma=0.4,
            first_tokens_median=2000,
            first_tokens_sigma=1.0,
            turn_tokens_median=700,
            output_tokens_median=150,
            continue_first=0.9,
            continue_later=0.98,
            continue_turns=3,
            think_s_median=4,
            think_s_sigma=1.2,
            pause_share=0.05,
        ),
    ),
    "rag": (
        "questions on retrieved documents of skewed popularity",
        Workload(
            trunks=2, documents=3000, first_tokens_median=60, first_tokens_sigma=0.7, continue_first=0.25,
            continue_later=0.5,
        ),
    ),
    "flood": ("chat, and floods of long prompts that never return", Workload(flood_per_s=2.0)),
    "churn": (
        "chat with long system prompts that are edited again and again",
        Workload(trunks=16, trunk_tokens_median=6000, trunk_life_s=600),
    ),
    "shift": ("chat with think times that become four times as long halfway", Workload(shift_factor=4.0)),
}  # fmt: skip
"""What each kind is, and its parameters."""


def make_workload(kind: str, changes: Mapping[str, object]) -> Workload:
    """The parameters of `kind` with `changes` by name. Raises ConfigError, one line per problem."""
    if kind not in KINDS:
        raise ConfigError(f"{kind}: no such kind; there are {', '.join(KINDS)}{suggestion(kind, tuple(KINDS))}")
    known = tuple(Workload.model_fields)
    problems = [
        f"--set {name}: no such parameter{suggestion(name, known)}; see tieredkv trace parameters {kind}"
        for name in changes
        if name not in known
    ]
    given = {name: value for name, value in changes.items() if name in known}
    base = KINDS[kind][1].model_dump()
    try:
        workload = Workload.model_validate(base | given)
    except ValidationError as error:
        problems += [f"--set {_named(details['loc'])}: {remedy(details)}" for details in error.errors()]
    else:
        if workload.flood_s > workload.flood_every_s:
            problems.append("--set flood_s: must be at most flood_every_s")
        if not problems:
            return workload
    raise ConfigError("\n".join(problems))


def _named(location: tuple[int | str, ...]) -> str:
    return ".".join(map(str, location))
