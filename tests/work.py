"""How much work something is, in operations and in numbers written: what no busy machine changes."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Work(TorchDispatchMode):
    """Counts within its block.

    Attributes:
        operations: of any kind but views.
        written: entries of all their results.
    """

    def __init__(self):
        super().__init__()
        self.operations = self.written = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.operations += 1
            self.written += sum(t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor))
        return out
