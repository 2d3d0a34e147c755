"""The latent values of one parameter: what an optimizer trains, while the network computes with their projection."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from regrow import codes
from regrow.latent import Latent, Rivals
from regrow.shards import Ranks


class Held(Protocol):
    """The codes and the memory of a parameter: `regrow.state.WeightState`."""

    normalizes: bool
    rivals: Rivals | None
    ranks: Ranks

    @property
    def param(self) -> Tensor:
        """What this process holds of the parameter."""

    @property
    def grad(self) -> Tensor | None:
        """Its gradient."""

    @property
    def memory(self) -> Tensor:
        """The latent values."""

    @property
    def flags(self) -> Tensor:
        """uint8, with the codes."""

    @property
    def active(self) -> Tensor:
        """bool."""

    @property
    def has_pruned(self) -> bool:
        """Whether some entries do not train."""

    @property
    def is_written(self) -> bool:
        """Whether somebody else has written the parameter."""

    def note_written(self) -> None:
        """Notes that the parameter is as it should be."""

    def probe_finds(self) -> bool:
        """Whether somebody has written it by a way that is not counted, as far as a sample tells."""

    def write_zeros(self) -> None:
        """Writes zeros where nothing is active."""


class LatentValues:
    """Latent values in the memory of a parameter, whose entries are TRAINABLE, EXPLORED, or (those that do not train)
    PRUNED meanwhile.

    Args:
        state: the parameter's codes and memory.
        how: they train.
    """

    def __init__(self, state: Held, how: Latent) -> None:
        self.how = how
        self._state = state
        self._live: Tensor | None = None  # the parameter's own data, while it has latent values for a step
        self._behind = False  # whether it is still to become their projection
        self._projected = state.param.dtype  # of the parameter, when it last became that
        self._threshold: Tensor | None = None  # of the last soft projection, where several processes have agreed on it
        self._scaled: tuple[int, Tensor | None] = (0, None)  # pieces of a step that are, and what the next one becomes

    @torch.no_grad()
    def show(self) -> None:
        """Gives the parameter its latent values as its data, for the optimizer's step."""
        done, result = self._scaled
        if done or result is not None:  # `hide` was interrupted
            self.hide(project=False)
        state = self._state
        param, memory = state.param, state.memory
        if self._live is not None:
            if param.data_ptr() == self._live.data_ptr():  # an interruption came between the two lines that show
                param.data = memory
            return
        self.catch_up()
        self.take_written()
        live = param.data
        if self._changes_steps:
            self._behind = True
            live.copy_(memory)  # what the step sets out from; the projection is made anew after it
        self._live = live  # before the parameter loses it: nothing is between two lines but an interruption
        param.data = memory
        self._behind = False

    @torch.no_grad()
    def hide(self, project: bool = True) -> None:
        """Gives the parameter its own data again, the projection of the latent values, or what is to become that. Goes
        on where it was interrupted."""
        state, live = self._state, self._live
        if live is not None:
            param, memory = state.param, state.memory
            if param.data_ptr() not in (memory.data_ptr(), live.data_ptr()):  # an optimizer that makes new data
                memory.copy_(param)
            if self._changes_steps:
                self._change_step(memory, live)
            self._behind = True
            param.data = live
            self._live = None  # until here, it would begin again
        self._scaled = 0, None
        if project:
            self.catch_up()

    def _change_step(self, after: Tensor, before: Tensor) -> None:
        """Scales what removed entries have moved by, each once, however often this is interrupted and called again;
        what does not train has not moved."""
        for i, (new, old, flags) in enumerate(codes.pieces(after, before, self._state.flags)):
            done, result = self._scaled
            if i < done:
                continue
            if result is None:
                explored, rests = (of(flags).view(torch.bool) for of in (codes.explored, codes.pruned))
                moved = torch.lerp(old, new, self.how.gain) if self._scales_steps else new
                result = torch.where(rests, old, torch.where(explored, moved, new))
                self._scaled = i, result
            new.copy_(result)
            self._scaled = i + 1, None

    @torch.no_grad()
    def project(self) -> None:
        """The parameter ← the projection of its latent values."""
        self._project(self._state.param.detach(), afresh=True)

    def _project(self, live: Tensor, afresh: bool) -> None:
        """live ← the projection; unless afresh, it is zero already where nothing is active."""
        state = self._state
        if self.how.hard:
            for part, memory, flags in codes.pieces(live, state.memory, state.flags):
                codes.keep_only(codes.active(flags), memory, out=part)
        else:
            self._threshold = None
            out = live.zero_() if afresh else live
            self.how.project(state.memory, state.active, out, state.rivals, self._of_all)
        self._behind, self._projected = False, live.dtype
        state.note_written()

    def _of_all(self, largest: Tensor) -> Tensor:
        """The largest removed value on all processes. They ask each other once for each projection, which all of them
        make, and not when one of them looks what has been written since."""
        if not self._state.ranks.several:
            return largest
        if self._threshold is None:
            self._threshold = self._state.ranks.highest(largest)
        return self._threshold.to(largest.dtype)

    def catch_up(self) -> None:
        """Projects the latent values if they have not been since the last step."""
        if self._behind:
            self._project(self._state.param.detach(), afresh=self._changes_steps)

    def take_written(self, surely: bool = False) -> None:
        """What others have written into active entries since the last step is their latent value now.

        Args:
            surely: whether somebody has written.
        """
        state = self._state
        written = surely or state.is_written
        if self.how.hard and (written or state.param.device.type != "cpu" or state.probe_finds()):
            torch.where(state.active, state.param, state.memory, out=state.memory)
        elif written:
            live = state.param.detach()
            rounding = self._rounding(live.dtype)
            other = self.how.differs(live, state.memory, state.active, rounding, state.rivals, self._of_all)
            torch.where(other, state.param, state.memory, out=state.memory)
        if written:
            state.write_zeros()

    def _rounding(self, now: torch.dtype) -> float:
        """How far live values and latent ones may be from each other by the rounding of their type, as a share."""
        if now is self._projected:
            return torch.finfo(now).eps / 2
        return 2 * max(torch.finfo(now).eps, torch.finfo(self._projected).eps)  # both have been cast

    @property
    def _scales_steps(self) -> bool:
        """Whether what removed entries move in a step is scaled after it."""
        return self.how.gain != 1 and self._state.normalizes

    @property
    def _changes_steps(self) -> bool:
        """Whether a step is not the optimizer's own, so that the values before it are needed after it."""
        return self._scales_steps or self._state.has_pruned

    @property
    def scales_nothing(self) -> bool:
        """Whether they train by the gradients as they are, in steps that use them."""
        return not self.how.pull and (self.how.gain == 1 or self._state.normalizes)

    @torch.no_grad()
    def scale_gradient(self, due: bool) -> None:
        """Scales the gradients of removed entries; once for each backward pass.

        Args:
            due: whether this step uses them.
        """
        state, how = self._state, self.how
        grad = state.grad
        if grad is None or (due and self.scales_nothing):
            return
        for part, memory, flags in codes.pieces(grad, state.memory, state.flags):
            active = codes.active(flags)
            pull = memory.masked_fill(active.view(torch.bool), 0) if how.pull else None
            if not due or how.gain == 0:
                codes.keep_only(active, part, out=part)
            elif how.gain != 1 and not state.normalizes:
                part.mul_(active.to(part.dtype).add_(active.bitwise_xor_(1), alpha=how.gain))
            if pull is not None:
                part.add_(pull, alpha=how.pull)
