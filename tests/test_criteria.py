from __future__ import annotations

import pytest
import torch

from regrow.criteria import CRITERIA, Criterion
from regrow.errors import UserError

W, G = torch.tensor([-2.0, 0.5, 3.0]), torch.tensor([1.0, -4.0, 0.0])


def test_by_hand() -> None:
    assert CRITERIA["magnitude"](W).tolist() == [2, 0.5, 3]
    assert CRITERIA["taylor"](W, G).tolist() == [2, 2, 0]
    assert CRITERIA["gradient"](W, G).tolist() == [1, 4, 0]
    noise = CRITERIA["random"](W, generator=torch.Generator().manual_seed(7))
    assert torch.equal(noise, torch.rand(3, generator=torch.Generator().manual_seed(7)))


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


@pytest.mark.parametrize("wrong", ["tylor", 3, lambda: None, lambda a, b, c: a])
def test_refused(wrong) -> None:
    with pytest.raises(UserError, match="criterion"):
        Criterion.of(wrong)
