"""What layers of torch demand of their channels that no operation shows: numbers derived from others."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from regrow import names
from regrow.coupling.labels import Ledger
from regrow.coupling.rules import get


def modules_of_torch(replica: nn.Module, ledger: Ledger, narrow: bool = False) -> None:
    """Adds the demands of recurrent layers and of `nn.MultiheadAttention`, and the attributes of others that count the
    channels of their own weights, also where these are used without the layer (``torch.einsum`` with its weight).

    Args:
        replica: of which the parameters have labels.
        ledger: of the operations that it executed.
        narrow: whether heads lose width, rather than go whole.
    """
    for name, module in names.modules(replica).items():
        if isinstance(module, nn.RNNBase):
            _recurrent(name, module, ledger)
        elif isinstance(module, nn.RNNCellBase):
            hidden = _atoms(module.weight_hh, 1)
            if hidden is not None:
                ledger.sizes.append((name, "hidden_size", None, hidden))
            taken = _atoms(module.weight_ih, 1)
            if taken is not None:
                ledger.sizes.append((name, "input_size", None, taken))
        elif isinstance(module, nn.MultiheadAttention):
            _attention(name, module, ledger, narrow)
        else:
            _plain(name, module, ledger)


def _plain(name: str, module: nn.Module, ledger: Ledger) -> None:
    """What it has for each channel, used or not, goes with its weight, and its numbers with both."""
    for attribute, dim in _counts(module).items():
        counted = _atoms(module._parameters.get("weight"), dim)
        if counted is None:
            continue
        ledger.sizes.append((name, attribute, None, counted))
        if attribute in ("out_features", "out_channels", "num_features"):
            for other in ("bias", "running_mean", "running_var"):
                mine = _atoms(module._parameters.get(other, module._buffers.get(other)), 0)
                if mine is not None and mine.numel() == counted.numel():
                    ledger.same(counted, mine, "its layer has one width")


def _counts(module: nn.Module) -> dict[str, int]:
    """Attributes that count a dimension of the layer's weight."""
    if isinstance(module, nn.Linear):
        return {"out_features": 0, "in_features": 1}
    if isinstance(module, _ConvNd) and module.groups == 1:
        takes = 0 if isinstance(module, _ConvTransposeNd) else 1
        return {"in_channels": takes, "out_channels": 1 - takes}
    if isinstance(module, nn.Embedding):
        return {"embedding_dim": 1}
    return {"num_features": 0} if isinstance(module, _NormBase) else {}


def _recurrent(name: str, module: nn.RNNBase, ledger: Ledger) -> None:
    """One number says how wide the hidden states of all layers and directions are."""
    ways = ("", "_reverse")[: 1 + module.bidirectional]
    suffixes = [f"l{k}{way}" for k in range(module.num_layers) for way in ways]
    widths = {"proj_size" if module.proj_size else "hidden_size": [("weight_hh", 1)]}
    if module.proj_size:
        widths["hidden_size"] = [("weight_hr", 1)]
    for attribute, [(weight, dim)] in widths.items():
        found = [a for s in suffixes if (a := _atoms(getattr(module, f"{weight}_{s}"), dim)) is not None]
        for other in found[1:]:
            ledger.same(found[0], other, "its layers have one width")
        if found:
            ledger.sizes.append((name, attribute, None, found[0]))
            if attribute == "hidden_size" and module.proj_size:  # torch takes equal widths for no projection at all
                ledger.fix(found[0][: module.proj_size + 1], "it must stay wider than its projection")
    taken = _atoms(module._parameters["weight_ih_l0"], 1)
    if taken is not None:
        ledger.sizes.append((name, "input_size", None, taken))


def _attention(name: str, module: nn.MultiheadAttention, ledger: Ledger, narrow: bool) -> None:
    """What it takes is as wide as all of its heads together, so whole heads go, with the channels at their places. It
    divides by the root of a head's width, so that this stays."""
    embed, heads = module.embed_dim, module.num_heads
    found = [a for a in _widths(module) if a is not None and a.numel() == embed]
    if not found:
        return
    for other in found[1:]:
        ledger.same(found[0], other, "it is as wide as all heads together")
    if narrow:
        ledger.fix(found[0], f"MultiheadAttention takes the width of its heads from that of its input ({name})")
        return
    grid = found[0].reshape(heads, -1)
    ledger.same(grid, grid[:, :1], "it is cut into heads")
    ledger.sizes.append((name, "num_heads", None, grid[:, 0]))
    for attribute in ("embed_dim", "kdim", "vdim"):
        ledger.sizes.append((name, attribute, None, found[0]))


def _widths(module: nn.MultiheadAttention) -> Iterator[Tensor | None]:
    yield _atoms(module.out_proj.weight, 0)
    yield _atoms(module.out_proj.weight, 1)
    if module.in_proj_weight is None:
        for weight in (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight):
            yield from (_atoms(weight, 0), _atoms(weight, 1))
        return
    yield _atoms(module.in_proj_weight, 1)
    rows = _atoms(module.in_proj_weight, 0)
    if rows is not None:
        yield from rows.chunk(3)


def _atoms(weight: Tensor | None, dim: int) -> Tensor | None:
    """The atoms along a dimension of a parameter; None where it has but one."""
    return next((label.atoms.reshape(-1) for label in get(weight) if dim in label.dims), None)
