"""The state of one sparsified parameter: which entries are in use, and what the others were last worth.

`WeightState.transition` is the only writer of codes. Nothing else in regrow multiplies by a mask.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, Literal

import torch
from torch import Tensor

from regrow import codes, optim_state
from regrow.coded import Coded
from regrow.codes import EXPLORED, FROZEN, PRUNED, TRAINABLE
from regrow.errors import UserError
from regrow.journal import Journal
from regrow.latent import Latent, Rivals
from regrow.latent_values import LatentValues
from regrow.shards import ALONE, Ranks

__all__ = ["EXPLORED", "FROZEN", "PRUNED", "TRAINABLE", "Init", "WeightState"]

_PROBED = 1024  # entries of a parameter that are looked at after every step

Init = Literal["mru", "explored", "zero"]


class WeightState(Coded):
    """Codes and memory of one parameter: one byte and one number for each of its entries that this process holds.

    The live value of an entry is: PRUNED → 0; FROZEN → memory; TRAINABLE and EXPLORED → the parameter's own. In a
    latent phase, in which none is FROZEN, memory holds the latent values of all entries (PRUNED ones rest), and
    the live ones are their projection; for the optimizer's step the parameter is given memory as its data, without a
    copy.

    Args:
        name: the parameter's canonical name.
        parameter: any shape; written in place only.
        optimizer_state: a function that gives the optimizer's state of this parameter.
        holds_zero: whether the optimizer leaves pruned entries at zero by itself once their gradient is masked.
        normalizes: whether the optimizer undoes any scale of gradients.
        ranks: the processes that hold the parameter. Where there are several, all make the same transitions.
    """

    def __init__(
        self, name: str, parameter: Tensor, optimizer_state: Any, holds_zero: bool, normalizes: bool = False,
        ranks: Ranks = ALONE,
    ) -> None:  # fmt: skip
        super().__init__(name, parameter, ranks)
        self.holds_zero = holds_zero
        self.normalizes = normalizes
        self.at_rest = False  # while the parameter holds only what is active, in another shape: nothing to enforce
        self._optimizer_state = optimizer_state
        self.rivals: Rivals | None = None  # what latent values compete with, where not with all others
        self.latents: LatentValues | None = None  # while these train
        self.journal: Journal | None = None  # where what transitions change is kept first
        self._has_frozen = False
        self._has_pruned = False
        self._settled = False
        self._probe = 0  # where the next one begins
        self._version = -1  # of the parameter, when this has last written it
        self._written = False  # by somebody else since

    @property
    def latent(self) -> Latent | None:
        """How latent values train, while they do."""
        return None if self.latents is None else self.latents.how

    def optimizer_state(self) -> MutableMapping[str, Any]:
        """The optimizer's state of this parameter; empty before its first step, and before `settle`."""
        return self._optimizer_state() if self._settled else {}

    def values(self) -> Tensor:
        """What each entry is worth now: its live value, or where it is pruned or latent, the value in memory. To be
        read before anything changes: it may be memory itself."""
        if self.latents is not None:
            return self.memory
        worth = self.memory.clone()
        for value, live, flags in codes.pieces(worth, self.param.detach(), self._flags):
            torch.where(codes.pruned(flags).view(torch.bool), value, live, out=value)
        return worth

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
        self.hide_latent(project=False)
        self._keep_before(init, latent)
        old, was = self.flags, self.latent
        if was is not None and init == "zero":
            self.memory.masked_fill_(codes.arrives(old, code).view(torch.bool), 0)
        if was is not None and latent is not None:  # values in memory stay what they are
            self._go_on(code, latent)
            return
        if was is not None:
            active = codes.active(code).view(torch.bool)
            now = was.project(self.memory, active, rivals=self.rivals, of_all=self.ranks.highest)
            torch.where(active, now, self.memory, out=self.param.detach())
        arrives = codes.arrives(old, code).view(torch.bool)
        restarted = arrives & codes.pruned(old).view(torch.bool) if init == "explored" else arrives
        restarted = restarted | codes.pruned(code).view(torch.bool)
        was_live = self.trainable
        for live, memory, flags, new in codes.pieces(self.param.detach(), self.memory, old, code):
            codes.move(live, memory, flags, new, init if was is None else "explored")
        self._write(code)
        optim_state.update_state_for(
            self.optimizer_state(), self.param, self.trainable, was_live, restarted, self.ranks
        )
        self._count_codes()
        self._hold()
        self.latents = None
        if latent is not None:
            torch.where(codes.pruned(code).view(torch.bool), self.memory, self.param, out=self.memory)
            self._train_latent(latent)

    def _go_on(self, code: Tensor, latent: Latent) -> None:
        """Puts new codes in force while latent values train."""
        was_live, rested = self.trainable, self._has_pruned
        self._write(code)
        if rested or latent.backward:
            optim_state.update_state_for(
                self.optimizer_state(), self.memory, self.trainable, was_live, self.trainable & ~was_live, self.ranks
            )
        if rested or latent.backward or self.ranks.several:
            self._count_codes()
        self._train_latent(latent)

    def _keep_before(self, init: Init, latent: Latent | None) -> None:
        """Notes in the journal, if there is one, what a transition to this way of training is about to change."""
        if self.journal is None:
            return
        self.journal.keep(self._flags)
        goes_on = self.latent is not None and latent is not None
        if not goes_on or init == "zero":
            self.journal.keep(self.param, self._memory)
        if not goes_on or init == "zero" or self._has_pruned or (latent is not None and latent.backward):
            self.journal.keep(*(value for _, _, value in optim_state.tensors(self.optimizer_state(), self.param)))

    def _train_latent(self, how: Latent) -> None:
        self.latents = LatentValues(self, how)
        self.latents.project()

    def follow(self) -> None:
        """Projects latent values anew, if there are any."""
        if self.latents is not None:
            self.latents.project()

    def _write(self, code: Tensor) -> None:
        self.flags.bitwise_and_(~codes.CODE & 0xFF).bitwise_or_(code)

    def _count_codes(self) -> None:
        """Notes what the codes ask of every step."""
        frozen, pruned = self.count_codes()
        self._has_frozen, self._has_pruned = bool(frozen), bool(pruned)

    def _hold(self) -> None:
        """Holds parameter-like optimizer state of frozen entries."""
        self.held = {
            name: value.detach().clone()
            for name, kind, value in optim_state.tensors(self.optimizer_state(), self.param)
            if self._has_frozen and kind == "parameter"
        }

    def show_latent(self) -> None:
        """Gives the parameter latent values as its data, if it has any, for the optimizer's step."""
        if self.latents is not None and not self.at_rest:
            self.latents.show()

    def hide_latent(self, project: bool = True) -> None:
        """Gives the parameter its own data again, the projection of its latent values, if it has any, or (if they are
        not to be projected yet) what is to become that."""
        if self.latents is not None:
            self.latents.hide(project)

    @property
    def has_pruned(self) -> bool:
        """Whether some entries are PRUNED."""
        return self._has_pruned

    @property
    def is_written(self) -> bool:
        """Whether somebody else has written the parameter since the last `note_written`, by any way that is counted."""
        return self.holding.version != self._version

    def note_written(self) -> None:
        """Notes that the parameter is as it should be."""
        self._version = self.holding.version

    @torch.no_grad()
    def mark(self, previous: Tensor | None = None, grown: Tensor | None = None) -> None:
        """Records (as bool, the parameter's shape) the structure that an update left, or what of it was grown."""
        if self.journal is not None:
            self.journal.keep(self._flags)
        for bit, mask in ((codes.PREVIOUS, previous), (codes.GROWN, grown)):
            if mask is not None:
                self.flags.bitwise_and_(~bit & 0xFF).bitwise_or_(mask.to(torch.uint8) * bit)

    @torch.no_grad()
    def mask_gradient(self, seen: bool = True) -> None:
        """Zeroes the gradient of entries that do not train, whatever it holds; no synchronisation.

        Comes before the optimizer's step, and notes whether somebody has written the parameter since the last one.

        Args:
            seen: whether anybody but the optimizer sees the gradient, as clipping does. Otherwise it stays where all
                that it does is undone: to frozen entries, by an optimizer that has no state but first moments, which
                start afresh when these train again.
        """
        grad = self._begin_step()
        if grad is None or not (self._has_frozen or self._has_pruned):
            return
        if not seen and not self._has_pruned and self.holds_zero and not self.normalizes:
            return
        for part, flags in codes.pieces(grad, self.flags):
            codes.keep_only(codes.trains(flags), part, out=part)

    def _begin_step(self) -> Tensor | None:
        """The gradient that the step is to use, if there is one."""
        grad = self.grad
        if grad is None or self.at_rest:
            return None
        if grad.layout is not torch.strided:
            raise UserError(
                f"{self.name} gets sparse gradients, which cannot be masked; exclude it, or use sparse=False"
            )
        self._written = self.is_written
        return grad

    @torch.no_grad()
    def adopt(self) -> bool:
        """Holds frozen entries at the values, of weights and optimizer state, that have been loaded from outside.
        Returns whether they are others."""
        self._settled = True
        if not self._has_frozen or self.at_rest:
            return False
        frozen = codes.frozen(self.flags).view(torch.bool)
        changed = not torch.equal(self.param[frozen], self.memory[frozen])
        self.memory.copy_(torch.where(frozen, self.param, self.memory))
        self._hold()
        return self.ranks.totals([changed]) != [0]

    @torch.no_grad()
    def fit_to_codes(self) -> None:
        """Makes values and optimizer state that somebody else wrote (or left from before attaching) fit the codes."""
        self._settled = True
        if self.at_rest:
            return
        if self.latents is not None:
            self.latents.take_written(surely=True)
            self.latents.project()
        self.write_zeros()
        trains, pruned = self.trainable, codes.pruned(self.flags).view(torch.bool)
        optim_state.update_state_for(self.optimizer_state(), self.param, trains, trains, pruned)

    @torch.no_grad()
    def write_zeros(self) -> None:
        """Zeroes what is pruned."""
        if self.at_rest:
            return
        if self.latents is not None or self._has_pruned:
            kept = codes.used if self.latents is None else codes.active
            for live, flags in codes.pieces(self.param.detach(), self.flags):
                codes.keep_only(kept(flags), live, out=live)

    @torch.no_grad()
    def enforce(self, update_follows: bool = False) -> None:
        """Puts pruned and frozen entries back to their values after a step, bit for bit; no synchronisation.

        Where the optimizer holds zeros by itself, they are written again only where others have written them: into the
        parameter before the step, or by its data or its gradient past all notice, which a probe finds.

        Args:
            update_follows: whether another structure comes at once; latent values wait for it, or for `hide_latent`.
        """
        self.hide_latent(project=not update_follows)
        if self.at_rest or self.latents is not None or not (self._has_frozen or self._has_pruned):
            return
        self._follow()
        if self._has_frozen or not self.holds_zero:
            self._restore(self.param, self._memory)
            for name, kind, value in optim_state.tensors(self.optimizer_state(), self.param):
                if kind == "parameter":
                    self._restore(value, self.held.get(name, value))
        elif self.param.device.type != "cpu":  # where it costs less than to wait for an answer
            self.write_zeros()
        elif self._written or self.probe_finds():
            self.fit_to_codes()
        self.note_written()

    def probe_finds(self) -> bool:
        """Whether some pruned entries are not zero, or active ones not their latent values: other ones every time, in
        turn all of them."""
        tensors = (self.param.detach(), self._memory, self._flags)
        flat = codes.in_order(*tensors) or [t.reshape(-1) for t in tensors]
        stride = max(1, len(flat[0]) // _PROBED)
        self._probe = (self._probe + 1) % stride
        live, memory, flags = (t[self._probe :: stride] for t in flat)
        code = flags.numpy() & codes.CODE  # of so few, in a fraction of the time that PyTorch takes
        if self.latents is not None:
            return bool(((codes.bits(live).numpy() != codes.bits(memory).numpy()) & (code == TRAINABLE)).any())
        return bool((codes.bits(live).numpy()[code == PRUNED] << 1).any())  # but for the sign of zero

    def _restore(self, tensor: Tensor, frozen: Tensor) -> None:
        if self._has_frozen:
            for live, held, flags in codes.pieces(tensor.detach(), frozen, self.flags):
                codes.replace(codes.trains(flags).bitwise_xor_(1), live, held)
        if self._has_pruned:
            tensor.masked_fill_(codes.pruned(self.flags).view(torch.bool), 0)

    @torch.no_grad()
    def hide_explored(self) -> Tensor:
        """Zeroes what is only explored, and returns the live values for putting them back."""
        live = self.param.detach().clone()
        self.param.masked_fill_(codes.explored(self.flags).view(torch.bool), 0)
        return live

    @torch.no_grad()
    def undo_start(self) -> None:
        """Puts back the values from before the first transition, where nobody has written others since."""
        if torch.equal(self.param, self.memory.masked_fill(codes.pruned(self.flags).view(torch.bool), 0)):
            self.param.copy_(self.memory)

    def state_dict(self) -> dict[str, Any]:
        """Tensors only, of the parameter's kind: flags, memory, and held optimizer state."""
        of = self.holding.whole
        held = {name: of(value) for name, value in self.held.items()}
        return {"flags": of(self.flags.clone()), "memory": of(self.memory.clone()), "held": held}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any], latent: Latent | None = None) -> None:
        """Restores from `state_dict`, or from one of whole tensors; values of the parameter are not part of it, nor how
        latent values train."""
        part = self.holding.part
        self.hide_latent()
        self.latents = None if latent is None else LatentValues(self, latent)
        self.flags.copy_(part(state["flags"]))
        self.memory.copy_(part(state["memory"]))
        self._count_codes()
        self.held = {name: part(value).to(self.param.device).clone() for name, value in state["held"].items()}
        self._settled = True
        self.write_zeros()
