import pytest

# The machine's assertions are in modules that are no tests themselves.
pytest.register_assert_rewrite(
    "tests.stateful.node",
    "tests.stateful.mover",
    "tests.stateful.machine_cold",
    "tests.stateful.machine_node",
    "tests.stateful.machine_requests",
    "tests.stateful.machine_stores",
)
