"""The address of random choices: the seed and epoch that determine them."""

from __future__ import annotations

from typing import NamedTuple

_BITS = 2**64 - 1


class Address(NamedTuple):
    """The seed and the epoch of random choices.

    Attributes:
        seed: in [0, 2**64).
        epoch: in [0, 2**32).
    """

    seed: int
    epoch: int

    @property
    def signed(self) -> tuple[int, int]:
        """The seed as a signed integer and the epoch, as native code takes them."""
        return signed(self.seed), self.epoch

    def derived(self, number: int) -> Address:
        """Return the address number ``number`` derived from this one, for separate choices.

        The seed is derived by SplitMix64 (Steele et al. 2014); the epoch stays the same.
        """
        x = (self.seed + (number + 1) * 0x9E3779B97F4A7C15) & _BITS
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _BITS
        x = (x ^ x >> 27) * 0x94D049BB133111EB & _BITS
        return Address(x ^ x >> 31, self.epoch)


def signed(seed: int) -> int:
    """Return the 64 bits of ``seed`` as a signed integer, as torch's operators require."""
    return seed - 2**64 if seed >= 2**63 else seed
