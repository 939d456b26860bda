"""GIX: evict what promises the fewest hits per slot and second, by a Gittins index learnt online."""

from tieredkv.policy.gix.admission import AdmitByIndex as AdmitByIndex
from tieredkv.policy.gix.policy import GIX as GIX
from tieredkv.policy.gix.tables import Tuning as Tuning
