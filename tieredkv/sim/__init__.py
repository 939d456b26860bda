"""Replay of traces through the production brain, with a virtual clock."""
