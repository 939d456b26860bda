"""The tiny space that the machine explores: few slots, few keys, and what must be seen in it."""

from collections import Counter
from collections.abc import Sequence

from hypothesis import strategies as st

from tieredkv.types import EngineId, Key, RequestId

SLOTS = 7
SHARE = 0.6
PAGES = 4
QUEUE_MAX = 3
DEADLINE_S = 2.0
DRAIN_STEPS_MAX = 20
ALLOWANCE = int(SLOTS * SHARE)
ENGINES = tuple(EngineId(name) for name in "abc")
REQUESTS = tuple(RequestId(name) for name in ("r0", "r1"))
CHAINS = ("0000", "0011", "01", "100")
"""A position is named by its path; `key_of` makes it a key."""

MARKS: Counter[str] = Counter()
EXPECTED_MARKS = frozenset(
    {
        "adopted one of two tenancies", "cut by the share", "drained", "engine killed", "evicted",
        "found by another engine", "found nothing", "found past a hole", "found whole", "given back",
        "lease cut by pins", "lost release repaired", "present", "pinned by two engines", "quarantine ended",
        "quarantined", "refused by admission", "reset under a lease", "reset under a pin", "resumed",
        "sidecar killed", "stale", "nonsense", "foreign", "second arrival added pins", "told of evicted",
        "columns of unequal length", "population late", "published over a hole",
        "a cancelled move ended", "a demotion failed", "a promotion failed", "came in part", "came whole",
        "cancelled", "demoting", "engine killed while loading", "hidden", "kept", "late", "loaded",
        "mover killed", "mover refused", "no second hope", "published under what was leaving",
        "published while it was loading", "quarantined for the mover", "reset while demoting",
        "reset while loading", "something is coming", "told in parts", "two wait for one load", "worth a page",
        "distrusted", "fetching", "offered away", "pulled",
        "came past a hole", "something is coming before nonsense",
    }
)  # fmt: skip


def key_of(path: str) -> Key:
    """Key of a position; empty above the start."""
    return Key(path.encode().ljust(16, b"-")) if path else Key(b"")


def chain_of(path: str) -> list[Key]:
    """All keys from the start to `path`."""
    return [key_of(path[: depth + 1]) for depth in range(len(path))]


class MoodyAdmission:
    """Admits all, but for the next few it was told to refuse."""

    def __init__(self) -> None:
        self.refusals = 0

    def admit(self, keys: Sequence[Key], parents: Sequence[Key], excess: int, now_s: float) -> list[bool]:
        refused = min(self.refusals, len(keys))
        self.refusals -= refused
        return [False] * refused + [True] * (len(keys) - refused)


engines = st.sampled_from(ENGINES)
requests = st.sampled_from(REQUESTS)
chains = st.sampled_from(CHAINS)
dice = st.integers(0, 2)
"""Rules that wipe out much do so only at 0: otherwise nothing would ever be built up."""
