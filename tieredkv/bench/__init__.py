"""Measurements as commands: each figure comes with its floor or peer, taken in the same run."""
