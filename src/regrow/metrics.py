"""Where a run is, as numbers that any logger takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regrow.schedule import Budget

if TYPE_CHECKING:
    from regrow.engine import Engine


def of(engine: Engine) -> dict[str, float]:
    """As `regrow.Sparsifier.metrics`."""
    step, timeline, now = engine.step_count, engine.timeline, engine.span.phase
    phases = [*dict.fromkeys([*(phase.name for phase in timeline.cycle), now, "fixed"])]
    found = {
        "density": engine.units.density(),
        "updates": float(engine.records[-1]["update"]) if engine.records else 0.0,
        **{f"phase_{phase}": float(phase == now) for phase in phases},
    }
    budget = getattr(engine.method, "budget", None)
    if isinstance(budget, Budget):
        found["budget"] = 0.0 if now == "fixed" else budget.fraction(step, timeline.until)
    found |= {kind: spent for kind, (spent, _) in engine.units.costs().items()}
    if engine.records:
        found |= {key: engine.records[-1][key] for key in ("iou", "survival")}
    return {f"regrow/{key}": value for key, value in found.items() if value is not None}
