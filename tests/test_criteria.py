from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regrow.criteria import CRITERIA, Criterion
from regrow.errors import UserError

W, G = torch.tensor([-2.0, 0.5, 3.0]), torch.tensor([1.0, -4.0, 0.0])


def test_by_hand() -> None:
    assert CRITERIA["magnitude"](W).tolist() == [2, 0.5, 3]
    assert CRITERIA["taylor"](W, G).tolist() == [2, 2, 0]
    assert CRITERIA["gradient"](W, G).tolist() == [1, 4, 0]
    assert CRITERIA["fisher"](W, G).tolist() == [2, 2, 0]
    assert CRITERIA["movement"](W, G).tolist() == [2, 2, 0]
    assert CRITERIA["movement"](W, -G).tolist() == [-2, -2, 0]
    assert CRITERIA["snip"](W, G).tolist() == [-2, -2, 0]
    assert CRITERIA["momentum"](W, G).tolist() == [1, -4, 0]
    for name in ("snip", "momentum"):
        after = CRITERIA[name].after
        assert after is not None
        assert after(torch.tensor([-2.0, 1.0])).tolist() == [2, 1]
    torch.testing.assert_close(CRITERIA["lamp"](W), torch.tensor([4 / 13, 0.25 / 13.25, 1.0]))
    assert CRITERIA["lamp"](torch.zeros(2, 2)).tolist() == [[0, 0], [0, 0]]
    noise = CRITERIA["random"](W, generator=torch.Generator().manual_seed(7))
    assert torch.equal(noise, torch.rand(3, generator=torch.Generator().manual_seed(7)))


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=30))
def test_lamp_is_what_its_definition_says(values: list[float]) -> None:
    """Lee et al. 2021, equation 1: weights in the order of their size; the largest has score 1."""
    squares = sorted((w * w, i) for i, w in enumerate(values))
    expected = {
        i: s / rest if (rest := sum(t for t, _ in squares[place:])) else 0.0 for place, (s, i) in enumerate(squares)
    }
    found = CRITERIA["lamp"](torch.tensor(values)).tolist()
    for i, score in enumerate(found):
        same = [expected[j] for j, w in enumerate(values) if abs(w) == abs(values[i])]  # of equal ones, in any order
        assert min(abs(score - one) for one in same) <= 1e-4 * max(same) + 1e-30


def test_users_functions() -> None:
    def squared(weight):
        return weight**2

    criterion = Criterion.of(squared)
    assert (criterion.name, criterion.uses_grad) == ("squared", False)
    assert criterion(W.half()).dtype == torch.float32
    both = Criterion.of(lambda w, g: w - g)
    assert both.uses_grad
    assert both(W, G).tolist() == [-3, 4.5, 3]
    assert Criterion.of(both) is both


def test_scores_that_cannot_be_ranked() -> None:
    weight = torch.ones(2, 3)
    with pytest.raises(UserError, match=r"must return real scores in a plain tensor, not torch\.complex64"):
        Criterion.of(lambda w: torch.complex(w, w))(weight)
    with pytest.raises(UserError, match=r"not torch\.float32, torch\.sparse_coo"):
        Criterion.of(lambda w: w.to_sparse())(weight)


@pytest.mark.parametrize("wrong", ["tylor", 3, lambda: None, lambda a, b, c: a])
def test_refused(wrong) -> None:
    with pytest.raises(UserError, match="criterion"):
        Criterion.of(wrong)
