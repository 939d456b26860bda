"""What a running tier was asked, written down so that it can be replayed; nothing of any text is in it."""

from tieredkv.trace.arrivals import AccessRecord, Arrival, ArrivalLines, Hints
from tieredkv.trace.linefile import LineFile

__all__ = ["AccessRecord", "Arrival", "ArrivalLines", "Hints", "LineFile"]
