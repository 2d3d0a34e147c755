"""The state of one sparsified parameter: which entries are in use, and what the others were last worth.

`WeightState.transition` is the only writer of codes. Nothing else in regrow multiplies by a mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, MutableMapping
from typing import Any, Literal

import torch
from torch import Tensor

from regrow import optim_state
from regrow.errors import UserError
from regrow.latent import Latent

# Two bits of code. The lower one says that an entry trains: it is what gradients are masked with.
PRUNED = 0  # out of use: zero, its last value in memory
TRAINABLE = 1  # in the active structure, training
FROZEN = 2  # in the active structure, held at the value in memory
EXPLORED = 3  # in the exploration space, training for a preview; in a latent phase, zero, and training in memory

# Two bits of history beside it: what the last update left.
_CODE = 3
_PREVIOUS = 4  # was in the active structure
_GROWN = 8  # was grown by it
ALL_FLAGS = _CODE | _PREVIOUS | _GROWN

_PIECE = 1 << 17  # entries that stay in a core's cache
_PROBED = 1024  # entries of a parameter that are looked at after every step
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # bytes of a number → integers as wide

Init = Literal["mru", "explored", "zero"]


class WeightState:
    """Codes and memory of one parameter: one byte and one number for each of its entries.

    The live value of an entry is: PRUNED → 0; FROZEN → memory; TRAINABLE and EXPLORED → the parameter's own. In a
    latent phase memory holds the latent values of all entries, and the live ones are their projection.

    Args:
        name: the parameter's canonical name.
        param: the parameter, any shape; written in place only.
        optimizer_state: a function that gives the optimizer's state of this parameter.
        holds_zero: whether the optimizer leaves pruned entries at zero by itself once their gradient is masked.
        normalizes: whether the optimizer undoes any scale of gradients.
    """

    def __init__(
        self, name: str, param: Tensor, optimizer_state: Any, holds_zero: bool, normalizes: bool = False
    ) -> None:
        self.name = name
        self.param = param
        self.holds_zero = holds_zero
        self.normalizes = normalizes
        self._memory = torch.zeros_like(param, requires_grad=False)
        self._flags = torch.full_like(param, TRAINABLE, dtype=torch.uint8, requires_grad=False)
        self.held: dict[str, Tensor] = {}  # parameter-like optimizer state while entries are frozen
        self.at_rest = False  # while the parameter holds only what is active, in another shape: nothing to enforce
        self._optimizer_state = optimizer_state
        self.latent: Latent | None = None  # while latent values train
        self._shown = False  # whether the parameter holds latent values, for the optimizer's step
        self._has_frozen = False
        self._has_pruned = False
        self._settled = False
        self._probe = 0  # where the next one begins
        self._version = -1  # of the parameter, when this has last written it
        self._written = False  # by somebody else since

    @property
    def memory(self) -> Tensor:
        """The value that each entry last had, in the parameter's shape, on its device and of its type (which follows
        where the model has been cast or moved)."""
        self._follow()
        return self._memory

    @property
    def flags(self) -> Tensor:
        """uint8, the parameter's shape: codes and history."""
        self._follow()
        return self._flags

    def _follow(self) -> None:
        param = self.param
        if self._memory.dtype is not param.dtype:
            self._memory = self._memory.to(param.dtype)
            self.holds_zero = False  # as what is added to denominators may be nothing in the new type
        if self._memory.device != param.device:
            self._memory, self._flags = self._memory.to(param.device), self._flags.to(param.device)
            self.held = {name: value.to(param.device) for name, value in self.held.items()}

    @property
    def code(self) -> Tensor:
        """uint8, the parameter's shape: PRUNED, TRAINABLE, FROZEN or EXPLORED."""
        return self.flags & _CODE

    @property
    def active(self) -> Tensor:
        """bool: the active structure."""
        code = self.code
        return (code == TRAINABLE) | (code == FROZEN)

    @property
    def trainable(self) -> Tensor:
        """bool: entries that train now, in the active structure or explored."""
        return (self.flags & 1).view(torch.bool)

    @property
    def previous(self) -> Tensor:
        """bool: the active structure that the last update left."""
        return (self.flags & _PREVIOUS).to(torch.bool)

    @property
    def grown(self) -> Tensor:
        """bool: what the last update grew."""
        return (self.flags & _GROWN).to(torch.bool)

    def optimizer_state(self) -> MutableMapping[str, Any]:
        """The optimizer's state of this parameter; empty before its first step, and before `settle`."""
        return self._optimizer_state() if self._settled else {}

    def values(self) -> Tensor:
        """What each entry is worth now: its live value, or where it is pruned or latent, the value in memory."""
        if self.latent is not None:
            return self.memory.clone()
        return torch.where(self.code == PRUNED, self.memory, self.param.detach())

    @torch.no_grad()
    def transition(self, code: Tensor, init: Init = "zero", latent: Latent | None = None) -> None:
        """Puts new codes in force: saves live values, writes the parameter, mends the optimizer's state.

        Where latent values stop training, active entries keep the values that the network has computed with.

        Args:
            code: uint8, the parameter's shape.
            init: the value of entries that come into use (out of PRUNED, or from EXPLORED into the active structure):
                ``"mru"`` the value they last had before this exploration; ``"explored"`` the one they have
                reached in it; ``"zero"``.
            latent: how latent values train from now on, if they do.
        """
        self.show_latent()
        old, new = self.code, code
        was_live = (old & 1).view(torch.bool)
        arrives = ((old == PRUNED) & (new != PRUNED)) | ((old == EXPLORED) & ((new == TRAINABLE) | (new == FROZEN)))
        value = self.param.detach().clone()
        if init == "mru":
            value = torch.where(arrives, self.memory, value)
        elif init == "zero":
            value.masked_fill_(arrives, 0)
        if self.latent is not None and latent is None:
            active = (new == TRAINABLE) | (new == FROZEN)
            value = torch.where(active, self.latent.project(value, active), value)
        self.memory.copy_(torch.where(was_live, self.param, self.memory))
        self.memory.copy_(torch.where(new == FROZEN, value, self.memory))
        self.param.copy_(value.masked_fill_(new == PRUNED, 0))
        self.flags.bitwise_and_(~_CODE & 0xFF).bitwise_or_(new)

        trains = (new & 1).view(torch.bool)
        restarted = (new == PRUNED) | (arrives & (old == PRUNED) if init == "explored" else arrives)
        optim_state.update_state_for(self.optimizer_state(), self.param, trains, was_live, restarted)
        self.latent, self._shown = latent, False
        self._note_codes()
        if latent is not None:
            self._project(latent)

    def _note_codes(self) -> None:
        """Notes what the codes ask of every step, and holds parameter-like optimizer state of frozen entries."""
        self._has_frozen = bool((self.code == FROZEN).any())
        self._has_pruned = bool((self.code == PRUNED).any())
        self._hold()

    def _hold(self) -> None:
        self.held = {
            name: value.detach().clone()
            for name, kind, value in optim_state.tensors(self.optimizer_state(), self.param)
            if self._has_frozen and kind == "parameter"
        }

    @torch.no_grad()
    def evolve_memory(self, decay: float, change: Callable[[Tensor], Tensor] | None) -> None:
        """memory ← decay·memory + change(gradient); without a change, memory only decays.

        Means something for pruned entries; the memory of trainable ones is not in use. ``change`` sees each entry by
        itself: it may be given the gradient in pieces.
        """
        if change is None:
            self.memory.mul_(decay)
            return
        assert self.param.grad is not None
        for memory, grad in _pieces(self.memory, self.param.grad):
            memory.mul_(decay).add_(change(grad))

    @torch.no_grad()
    def show_latent(self) -> None:
        """Puts the latent values of what trains into the parameter, for the optimizer's step."""
        if self.latent is None or self._shown or self.at_rest:
            return
        soft = not math.isinf(self.latent.p)
        if soft:
            self._take_written()
        for live, memory, flags in _pieces(self.param.detach(), self.memory, self.flags):
            if not soft:  # active entries are what they are live, whoever wrote them
                torch.where((flags & _CODE) == EXPLORED, memory, live, out=live)
                continue
            live.copy_(memory)
            if self._has_pruned:
                live.masked_fill_((flags & _CODE) == PRUNED, 0)
        self._shown = True

    @torch.no_grad()
    def hide_latent(self) -> None:
        """Takes the latent values back into memory; the parameter is their projection again."""
        if self.latent is None or not self._shown:
            return
        gain = self.latent.gain
        if gain != 1 and self.normalizes:
            for live, memory, flags in _pieces(self.param.detach(), self.memory, self.flags):
                removed = (flags & _CODE) == EXPLORED
                torch.where(removed, torch.lerp(memory, live, gain), live, out=live)
        self._project(self.latent)

    def _project(self, latent: Latent) -> None:
        """memory ← the parameter, where it is not pruned; the parameter ← the projection of memory."""
        live = self.param.detach()
        for part, memory, flags in _pieces(live, self.memory, self.flags):
            if self._has_pruned:
                torch.where((flags & _CODE) == PRUNED, memory, part, out=memory)
            else:
                memory.copy_(part)
            if math.isinf(latent.p):  # keeps the bits of what is TRAINABLE; masked_fill_ takes four times as long
                kept = flags.bitwise_and(~(flags >> 1)).bitwise_and_(1).neg_().view(torch.int8)
                part.view(_BITS[part.element_size()]).bitwise_and_(kept)
        if not math.isinf(latent.p):
            live.copy_(latent.project(self.memory, self.active))
        self._shown = False
        self._version = self.param._version

    def _take_written(self) -> None:
        """What others have written into active entries since the last step is their latent value now."""
        if self.latent is None:
            return
        active = self.active
        if math.isinf(self.latent.p):
            torch.where(active, self.param, self.memory, out=self.memory)
        elif self.param._version != self._version:
            written = active & (self.param != self.latent.project(self.memory, active))
            torch.where(written, self.param, self.memory, out=self.memory)

    @property
    def scales_nothing(self) -> bool:
        """Whether latent values train by the gradients as they are, in steps that use them."""
        return self.latent is not None and not self.latent.pull and (self.latent.gain == 1 or self.normalizes)

    @torch.no_grad()
    def scale_gradient(self, due: bool) -> None:
        """Scales the gradients of removed entries whose latent values train; once for each backward pass.

        Args:
            due: whether this step uses them.
        """
        grad, latent = self.param.grad, self.latent
        if grad is None or latent is None or (due and self.scales_nothing):
            return
        gain = latent.gain
        for part, memory, flags in _pieces(grad, self.memory, self.flags):
            removed = (flags & _CODE) == EXPLORED
            if not due or gain == 0:
                part.masked_fill_(removed, 0)
            elif gain != 1 and not self.normalizes:
                torch.where(removed, part * gain, part, out=part)
            if latent.pull:
                part.add_(memory.masked_fill(~removed, 0), alpha=latent.pull)

    @torch.no_grad()
    def mark(self, previous: Tensor | None = None, grown: Tensor | None = None) -> None:
        """Records (as bool, the parameter's shape) the structure that an update left, or what of it was grown."""
        for bit, mask in ((_PREVIOUS, previous), (_GROWN, grown)):
            if mask is not None:
                self.flags.bitwise_and_(~bit & 0xFF).bitwise_or_(mask.to(torch.uint8) * bit)

    @torch.no_grad()
    def mask_gradient(self) -> None:
        """Zeroes the gradient of entries that do not train, whatever it holds; no synchronisation.

        Comes before the optimizer's step, and notes whether somebody has written the parameter since the last one.
        """
        grad = self.param.grad
        if grad is None or self.at_rest:
            return
        if grad.layout is not torch.strided:
            raise UserError(
                f"{self.name} gets sparse gradients, which cannot be masked; exclude it, or use sparse=False"
            )
        self._written = self.param._version != self._version
        if self.latent is not None and not self._has_pruned:  # all of it trains
            return
        bits = grad.view(_BITS[grad.element_size()])
        for part, flags in _pieces(bits, self.flags):  # 0 · inf would be NaN, and masked_fill_ takes four times as long
            part.bitwise_and_((flags & 1).neg_().view(torch.int8))

    @torch.no_grad()
    def adopt(self) -> bool:
        """Holds frozen entries at the values, of weights and optimizer state, that have been loaded from outside.
        Returns whether they are others."""
        self._settled = True
        if not self._has_frozen or self.at_rest:
            return False
        frozen = self.code == FROZEN
        changed = not torch.equal(self.param[frozen], self.memory[frozen])
        self.memory.copy_(torch.where(frozen, self.param, self.memory))
        self._hold()
        return changed

    @torch.no_grad()
    def fit_to_codes(self) -> None:
        """Makes values and optimizer state that somebody else wrote (or left from before attaching) fit the codes."""
        self._settled = True
        if self.at_rest:
            return
        self._take_written()
        if self.latent is not None:
            self.param.copy_(self.latent.project(self.memory, self.active))
        self.write_zeros()
        trains = self.trainable
        optim_state.update_state_for(self.optimizer_state(), self.param, trains, trains, self.code == PRUNED)

    @torch.no_grad()
    def write_zeros(self) -> None:
        """Zeroes what is pruned."""
        if self.at_rest:
            return
        if self.latent is not None:
            self.param.masked_fill_(self.code != TRAINABLE, 0)
        elif self._has_pruned:
            self.param.masked_fill_(self.code == PRUNED, 0)

    @torch.no_grad()
    def enforce(self) -> None:
        """Puts pruned and frozen entries back to their values after a step, bit for bit; no synchronisation.

        Where the optimizer holds zeros by itself, they are written again only where others have written them: into the
        parameter before the step, or by its data or its gradient past all notice, which a probe finds.
        """
        self.hide_latent()
        if self.at_rest or not (self._has_frozen or self._has_pruned):
            return
        self._follow()
        if self._has_frozen or not self.holds_zero:
            self._restore(self.param, self._memory)
            for name, kind, value in optim_state.tensors(self.optimizer_state(), self.param):
                if kind == "parameter":
                    self._restore(value, self.held.get(name, value))
        elif self.param.device.type != "cpu":  # where it costs less than to wait for an answer
            self.write_zeros()
        elif self._written or self._probe_finds():
            self.fit_to_codes()
        self._version = self.param._version

    def _probe_finds(self) -> bool:
        """Whether some pruned entries are not zero: other ones every time, in turn all of them."""
        values, flags = self.param.detach(), self._flags
        stride = max(1, values.numel() // _PROBED)
        self._probe = (self._probe + 1) % stride
        if values.stride() == flags.stride():  # in the order of memory, without a copy
            values, flags = (t.as_strided((t.numel(),), (1,), t.storage_offset()) for t in (values, flags))
        values, flags = (t.reshape(-1)[self._probe :: stride] for t in (values, flags))
        return bool(((values != 0) & ((flags & _CODE) == PRUNED)).any())

    def _restore(self, tensor: Tensor, frozen: Tensor) -> None:
        if self._has_frozen:
            live = tensor.detach()
            torch.where(self.trainable, live, frozen, out=live)
        if self._has_pruned:
            tensor.masked_fill_(self.code == PRUNED, 0)

    @torch.no_grad()
    def hide_explored(self) -> Tensor:
        """Zeroes what is only explored, and returns the live values for putting them back."""
        live = self.param.detach().clone()
        self.param.masked_fill_(self.code == EXPLORED, 0)
        return live

    @torch.no_grad()
    def undo_start(self) -> None:
        """Puts back the values from before the first transition, where nobody has written others since."""
        if torch.equal(self.param, self.memory.masked_fill(self.code == PRUNED, 0)):
            self.param.copy_(self.memory)

    def state_dict(self) -> dict[str, Any]:
        """Tensors only: flags, memory, and held optimizer state."""
        return {"flags": self.flags.clone(), "memory": self.memory.clone(), "held": dict(self.held)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any], latent: Latent | None = None) -> None:
        """Restores from `state_dict`; values of the parameter are not part of it, nor how latent values train."""
        self.latent, self._shown = latent, False
        self.flags.copy_(state["flags"])
        self.memory.copy_(state["memory"])
        self._has_frozen = bool((self.code == FROZEN).any())
        self._has_pruned = bool((self.code == PRUNED).any())
        self.held = {name: value.to(self.param.device).clone() for name, value in state["held"].items()}
        self._settled = True
        self.write_zeros()


def _pieces(*tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """Views of the same entries of tensors of one shape, few enough at a time to save passes over a CPU's memory."""
    if all(t.device.type == "cpu" and t.is_contiguous() for t in tensors):
        return zip(*(t.view(-1).split(_PIECE) for t in tensors), strict=True)
    return [tensors]
