from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regrow.errors import UserError
from regrow.schedule import START, Boundary, Budget, Phase, Span, cubic, fixed, repeat, steps_of


def test_cosine_is_rigls() -> None:
    budget = Budget("cosine", 0.3)
    for step in (0, 100, 25_000, 75_000):
        assert budget.fraction(step, 75_000) == pytest.approx(0.15 * (1 + math.cos(math.pi * step / 75_000)))
    assert budget.fraction(80_000, 75_000) == pytest.approx(0)


def test_other_shapes_at_their_ends() -> None:
    ends = {"exponential": (0.4, 0.004), "linear": (0.4, 0.0), "constant": (0.4, 0.4)}
    for shape, (first, last) in ends.items():
        budget = Budget(shape, 0.4)
        assert (budget.fraction(0, 10), budget.fraction(10, 10)) == pytest.approx((first, last))


@pytest.mark.parametrize(
    ("shape", "start", "words"), [("cosin", 0.3, "'cosin'"), ("cosine", 1.0, "1.0"), ("linear", 0.0, "0.0")]
)
def test_budget_refuses(shape, start, words) -> None:
    with pytest.raises(UserError, match=words):
        Budget(shape, start)


def test_cubic() -> None:
    assert [cubic(t, 0.0, 0.8) for t in (0, 0.5, 1, 2)] == pytest.approx([0, 0.7, 0.8, 0.8])


def test_phases_by_hand() -> None:
    timeline = repeat(Phase("estimate", 3), Phase("improve", 2), Phase("explore", 1), total_steps=20, until=15)
    assert timeline.updates == 2  # a third cycle would end at step 18
    phases = [timeline.phase_at(step).phase for step in range(20)]
    assert phases == (["estimate"] * 3 + ["improve"] * 2 + ["explore"]) * 2 + ["fixed"] * 8
    assert timeline.phase_at(7) == Span("estimate", 6, 9, 1)
    ended = {step: timeline.ended_at(step) for step in range(21) if timeline.ended_at(step)}
    assert {step: [b.ended for b in group] for step, group in ended.items()} == {
        3: ["estimate"], 5: ["improve"], 6: ["explore"], 9: ["estimate"], 11: ["improve"], 12: ["explore"],
    }  # fmt: skip
    assert ended[12] == [Boundary("explore", 1, 12, last=True, updates=2, until=15)]
    assert [timeline.prune_step(update) for update in (0, 1)] == [3, 9]


def test_a_phase_of_no_steps_still_ends() -> None:
    timeline = repeat(Phase("estimate", 3), Phase("improve", 2), Phase("explore", 0), total_steps=20, until=15)
    assert [b.ended for b in timeline.ended_at(5)] == ["improve", "explore"]
    assert [b.last for b in timeline.ended_at(5)] == [False, True]
    assert "explore" not in {timeline.phase_at(step).phase for step in range(20)}


def test_too_short_for_one_cycle() -> None:
    with pytest.raises(UserError, match="total_steps=20 is too short"):
        repeat(Phase("estimate", 16), total_steps=20, until=15)


def test_a_start_after_steps_that_score() -> None:
    timeline = repeat(Phase("estimate", 3), Phase("explore", 2), total_steps=30, until=20, start=4)
    assert timeline.phase_at(3) == Span("estimate", 0, 4, START)
    assert timeline.phase_at(4) == Span("estimate", 4, 7, 0)
    assert timeline.ended_at(4) == [Boundary("estimate", START, 4, last=False, updates=3, until=20)]
    assert (timeline.updates, timeline.prune_step(0), timeline.end) == (3, 7, 19)
    later = repeat(Phase("estimate", 3), total_steps=30, until=20, begin=6, start=4)
    assert [(span.start, span.update) for span in later.spans()][:3] == [(0, START), (4, None), (6, 0)]
    still = fixed(9, start=4)
    assert [(span.phase, span.update) for span in still.spans()] == [("estimate", START), ("fixed", None)]
    assert [step for step in range(10) if still.ended_at(step)] == [4]
    with pytest.raises(UserError, match="leaves no step"):
        fixed(4, start=4)


def test_steps_of() -> None:
    assert steps_of("update_end", 0.75, 1000) == 750
    assert steps_of("update_end", 300, 1000) == 300
    assert steps_of("update_end", 1.0, 1000) == 1000
    for wrong in (1.5, -1, 1001):
        with pytest.raises(UserError, match="update_end"):
            steps_of("update_end", wrong, 1000)


@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=4).filter(sum),
    begin=st.integers(0, 10),
    extra=st.integers(0, 40),
)
def test_every_step_lies_in_one_span_and_every_span_ends_once(lengths, begin, extra) -> None:
    names = ["estimate", "improve", "explore", "estimate"]
    phases = [Phase(name, n) for name, n in zip(names, lengths, strict=False)]
    until = begin + sum(lengths) + extra
    timeline = repeat(*phases, total_steps=until + 7, until=until, begin=begin)
    for step in range(timeline.total_steps):
        span = timeline.phase_at(step)
        assert span.start <= step < span.end
    steps = [span.end - span.start for span in timeline.spans()]
    assert sum(steps) == timeline.total_steps
    boundaries = [b for step in range(timeline.total_steps + 1) for b in timeline.ended_at(step)]
    if all(lengths[:1]):  # a first phase of no steps has no end of its own
        assert len(boundaries) == timeline.updates * len(phases)
        assert [b.update for b in boundaries] == sorted(b.update for b in boundaries)
    assert sum(b.last for b in boundaries) == timeline.updates


@pytest.mark.parametrize("updates", [1, 7, 9_999, 10_000, 10_001, 20_000, 20_001, 123_457])
def test_few_of_many_updates_are_recorded_evenly_and_the_last(updates) -> None:
    timeline = repeat(Phase("latent", 1), total_steps=updates, until=updates)
    recorded = [step for step in range(1, updates + 1) if all(b.is_recorded for b in timeline.ended_at(step))]
    spacing = recorded[0]
    assert recorded == sorted({*range(spacing, updates + 1, spacing), updates})
    assert spacing == 1 if updates <= 10_000 else 5_000 <= len(recorded) <= 10_001
