"""Being asked to stop: politely first, and then not."""

import signal

import pytest

from regrow.training.progress import StopRequest


@pytest.fixture
def died(monkeypatch):
    """The signals that would have ended the process."""
    seen = []
    before = {number: signal.signal(number, lambda n, _: seen.append(n)) for number in (signal.SIGINT, signal.SIGTERM)}
    yield seen
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("sent", "launched", "fatal"),
    [
        ([signal.SIGINT], False, []),
        ([signal.SIGTERM], False, []),
        ([signal.SIGINT, signal.SIGINT], False, [signal.SIGINT]),
        ([signal.SIGINT, signal.SIGTERM], False, [signal.SIGTERM]),
        ([signal.SIGINT, signal.SIGINT], True, []),  # Ctrl-C in a terminal, and passed on by a launcher
        ([signal.SIGINT, signal.SIGTERM], True, []),
        ([signal.SIGTERM, signal.SIGTERM], True, []),
    ],
)
def test_the_second_signal_acts_as_usual_unless_it_may_be_the_first_passed_on(died, sent, launched, fatal):
    with StopRequest(launched) as stop:
        assert not stop.wanted
        for number in sent:
            signal.raise_signal(number)
        assert stop.wanted
    assert died == fatal
    signal.raise_signal(signal.SIGINT)
    assert died == [*fatal, signal.SIGINT]
