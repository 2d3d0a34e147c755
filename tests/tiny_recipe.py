"""A recipe that runs in a second: a small network on generated images, with every phase of IEE in 30 steps."""

from pathlib import Path

PATIENCE = 600.0  # seconds for what another process does: only what hangs takes so long, however busy the machine

TINY = """\
model: {name: digits-cnn, options: {width: 4}}
data: {name: "generated:1x8x8:10:160", batch_size: 16}
steps: 30
method: {name: iee, h: 3, j: 2, q: 3}
pattern: {sparsity: 0.8, distribution: erk}
optimizer: {name: sgd, lr: 0.05}
train: {log_every: 5, eval_every: 1, threads: 1}
"""


CHANNELS = (  # overrides that make it a recipe of channels
    "--pattern.name", "channels", "--pattern.flops", "0.4", "--pattern.round_to", "1", "--criterion", "taylor",
    "--model.options.width", "8", "--train.latency_seconds", "2",
)  # fmt: skip


def write(directory: Path, extra: str = "") -> Path:
    """The recipe as a file in ``directory``, with ``extra`` sections."""
    path = directory / "tiny.yaml"
    path.write_text(TINY + extra)
    return path
