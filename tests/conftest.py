"""Settings of all tests: the machine's own pauses, and chance, must not fail an innocent change."""

from hypothesis import HealthCheck, settings

# By default an example that takes 0.2 s fails its test, and a busy machine stops a process for longer than that now
# and then. What hangs is ended by pytest's own time-out. Examples are the same in every run, like those of the state
# machines.
settings.register_profile("tieredkv", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tieredkv")
