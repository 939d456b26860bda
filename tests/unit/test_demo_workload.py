"""The demo's workload: seeded, bounded, interleaved, and more than the hot tier holds."""

from hypothesis import given
from hypothesis import strategies as st

from tieredkv.demo.run import MARKERS_PER_TURN_TOKENS, DemoOptions
from tieredkv.demo.workload import Shape, make_workload

shapes = st.builds(
    Shape,
    conversations=st.integers(1, 5),
    rounds_before=st.integers(1, 3),
    rounds_after=st.integers(1, 3),
    system_chars=st.integers(1, 200),
    first_chars=st.integers(1, 200),
    later_chars=st.integers(1, 50),
    answer_tokens=st.integers(1, 9),
)


@given(shapes, st.integers(0, 9))
def test_the_same_seed_gives_the_same_workload(shape: Shape, seed: int) -> None:
    assert make_workload(shape, seed=seed) == make_workload(shape, seed=seed)


def test_another_seed_gives_another_workload() -> None:
    assert make_workload(Shape(), seed=1) != make_workload(Shape(), seed=2)


@given(shapes)
def test_texts_have_their_length_and_conversations_their_bound(shape: Shape) -> None:
    workload = make_workload(shape, seed=0)
    assert len(workload.system) == shape.system_chars
    for conversation in range(shape.conversations):
        texts = [turn.text for turns in workload.rounds for turn in turns if turn.conversation == conversation]
        assert [len(text) for text in texts] == [shape.first_chars] + [shape.later_chars] * (shape.rounds - 1)
        said = shape.system_chars + sum(map(len, texts)) + shape.rounds * shape.answer_tokens
        assert said <= shape.longest_prompt_chars()


@given(shapes)
def test_every_round_asks_every_conversation_once(shape: Shape) -> None:
    workload = make_workload(shape, seed=0)
    for turns in workload.rounds:
        assert sorted(turn.conversation for turn in turns) == list(range(shape.conversations))
    parts = workload.before_restart() + workload.just_after_restart() + workload.rest()
    assert parts == [turn for turns in workload.rounds for turn in turns]
    assert len(workload.just_after_restart()) == shape.conversations


def test_the_demo_asks_for_more_than_the_hot_tier_holds() -> None:
    options = DemoOptions()
    shape, hot = options.shape, options.hot
    longest_tokens = shape.longest_prompt_chars() + (shape.rounds + 1) * MARKERS_PER_TURN_TOKENS
    assert longest_tokens <= hot.context_tokens <= hot.tokens
    # Even after their first turns the conversations do not fit together.
    assert shape.system_chars + shape.conversations * shape.first_chars > hot.tokens


@given(shapes)
def test_between_two_turns_of_a_conversation_all_the_others_have_theirs(shape: Shape) -> None:
    order = [turn.conversation for turns in make_workload(shape, seed=0).rounds for turn in turns]
    windows = (order[start : start + shape.conversations] for start in range(len(order) - shape.conversations + 1))
    assert all(len(set(window)) == shape.conversations for window in windows)
