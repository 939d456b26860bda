"""Comparing chains. Equal stretches are compared at memory speed, without hashing a key."""

from tieredkv.types import Key


def common(chain: list[Key], at: int, keys: list[Key]) -> int:
    """How many keys `chain[at:]` and `keys` share at their starts. Both are not empty there."""
    if chain[at] != keys[0]:
        return 0
    known, unknown = 1, min(len(keys), len(chain) - at)
    if chain[at : at + unknown] == (keys if unknown == len(keys) else keys[:unknown]):
        return unknown
    while unknown - known > 1:
        middle = (known + unknown) // 2
        if chain[at + known : at + middle] == keys[known:middle]:
            known = middle
        else:
            unknown = middle
    return known
