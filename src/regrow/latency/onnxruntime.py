"""Runs units in ONNX Runtime, each in a small graph of its own; needs the extra ``export``.

Whole graphs run in a blocked layout with batch norms folded and activations and additions fused into convolutions. So
a unit is put behind a cheap depthwise convolution, which brings its input into that layout and into the cache, and only
the runtime's own times of the unit's nodes count.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from regrow import extras
from regrow.errors import UserError
from regrow.inputs import Inputs, first_line
from regrow.latency.clock import MOST_TIMES, Clock, Timing
from regrow.latency.network import ATTENTION, LAYER_NORM, Key
from regrow.quiet import silent

Array = NDArray[np.float32]

_OPSET = 20
_CONTEXT = "before"  # names of the nodes that do not count begin with it
_CACHE_BYTES = 16 * 2**20
_ACTIVATIONS = {"relu": "Relu", "hardswish": "HardSwish", "sigmoid": "Sigmoid", "hardsigmoid": "HardSigmoid",
                "gelu": "Gelu", "tanh": "Tanh", "leaky_relu": "LeakyRelu", "elu": "Elu"}  # fmt: skip


class OnnxRuntime:
    """Times units and whole models in ONNX Runtime's CPU provider.

    Args:
        batch: examples at a time
        threads: that a session uses

    Raises:
        UserError: if onnx or onnxruntime is not installed.
    """

    name = "onnxruntime"

    def __init__(self, batch: int, threads: int) -> None:
        extras.require("export", "the runtime onnxruntime")
        import onnxruntime

        onnxruntime.set_default_logger_severity(3)
        self.batch, self.threads, self.clock = batch, threads, Clock(threads)
        self._random = np.random.default_rng(0)
        self._shortest: dict[str, float] = {}  # nodes around units, by kind and shape
        self._flush = np.zeros(_CACHE_BYTES // 8)

    def sample(self, key: Key, c_in: int, c_out: int, repeats: int) -> list[float]:
        """Seconds of each of ``repeats`` executions of a unit with these channels, after one that is not counted.

        On one thread what another program takes while a node runs is left out: the node cannot have taken more than the
        thread's CPU time of the whole run without the nodes around it, and these are too short to be interrupted often.
        """
        graph = _Graph(key, c_in, c_out, self.batch, self._random)
        feeds = {name: self._numbers(shape) for name, shape in graph.inputs.items()}
        with tempfile.TemporaryDirectory() as directory:
            try:
                session = self._session(graph.model(), profile=str(Path(directory) / "unit"))
            except Exception as error:
                raise UserError(
                    f"ONNX Runtime cannot run {key} with {c_in} and {c_out} channels: {first_line(error)}"
                ) from error

            def make() -> Callable[[], object]:
                if graph.weight_bytes > 2**18:
                    self._flush += 1.0  # the weights leave the cache, as they do in a network
                return lambda: session.run(None, feeds)

            runs: list[Timing] = []
            while len(runs) < repeats + 1 or (
                sum(run.quiet for run in runs[1:]) < repeats and len(runs) < MOST_TIMES * repeats
            ):
                runs.append(self.clock.timed(make(), (key, c_in, c_out)))
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        units, contexts = _seconds_by_run(events)
        if self.threads > 1:  # undisturbed ones, then the shortest of the others
            timed = zip(runs[1:], units[1:], strict=True)
            return [unit for _, unit in sorted((not run.quiet, unit) for run, unit in timed)][:repeats]
        samples = []
        for unit, run, around in zip(units[1:], runs[1:], contexts[1:], strict=True):
            for node, seconds in around:
                self._shortest[node] = min(self._shortest.get(node, seconds), seconds)
            rest = run.seconds - sum(self._shortest[node] for node, _ in around)
            samples.append(min(unit, rest) if rest > 0.0 else unit)
        return samples

    def whole(self, model: Any, inputs: Inputs) -> Callable[[], object]:
        """One forward pass of a PyTorch model in eval mode, exported to ONNX.

        Raises:
            UserError: if it cannot be exported or run, or its graph does not take the tensors that it was called with.
        """
        import torch

        model.eval()
        call = inputs.in_order(model)
        try:
            with silent(), torch.no_grad():
                program = torch.onnx.export(model, call.args, kwargs=dict(call.kwargs), dynamo=True, verbose=False)
                assert program is not None
            session = self._session(program.model_proto.SerializeToString())
        except Exception as error:
            raise UserError(
                f"the model cannot be run in ONNX Runtime: {first_line(error)}; --runtime eager "
                "(runtime='eager') takes any model"
            ) from error
        feeds = _feeds(session.get_inputs(), call.tensors)
        return lambda: session.run(None, feeds)

    def reference(self) -> Callable[[], object]:
        """A convolution of tenths of a millisecond."""
        key = Key("conv", (24, 24), (3, 3), (1, 1), (1, 1), (1, 1))
        graph = _Graph(key, 32, 32, 1, np.random.default_rng(0))
        session = self._session(graph.model())
        feeds = {name: np.ones(shape, np.float32) for name, shape in graph.inputs.items()}
        return lambda: session.run(None, feeds)

    def _session(self, model: bytes, profile: str = "") -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if profile:
            options.enable_profiling = True
            options.profile_file_prefix = profile
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def _numbers(self, shape: tuple[int, ...]) -> Array:
        return self._random.standard_normal(shape, dtype=np.float32)


def _feeds(wanted: Sequence[Any], tensors: Sequence[Tensor]) -> dict[str, Any]:
    """What the inputs of a graph are, by their names; shapes say whether tensors are taken for one another."""
    found = {one.name: tensor.numpy() for one, tensor in zip(wanted, tensors, strict=False)}
    shapes = [tuple(t.shape) for t in tensors]
    if shapes != [tuple(one.shape) for one in wanted]:
        raise UserError(
            f"the model cannot be run in ONNX Runtime: its graph takes {len(wanted)} tensors, and it was called with "
            f"{len(tensors)} of shapes {', '.join(map(str, shapes))}; runtime='eager' takes any model"
        )
    return found


def _seconds_by_run(events: list[dict[str, Any]]) -> tuple[list[float], list[list[tuple[str, float]]]]:
    """For each run in a session's profile the time of the unit's nodes, and (description, time) of each other one."""
    units: list[float] = []
    contexts: list[list[tuple[str, float]]] = []
    unit, context = 0.0, []
    for event in events:
        name, seconds = event.get("name", ""), event.get("dur", 0) * 1e-6
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            facts = event["args"]
            if name.startswith(_CONTEXT) or facts["op_name"].startswith("Reorder"):
                context.append((f"{facts['op_name']} {facts['output_type_shape']}", seconds))
            else:
                unit += seconds
        elif name == "model_run":
            units.append(unit)
            contexts.append(context)
            unit, context = 0.0, []
    return units, contexts


class _Graph:
    """The ONNX graph of one unit.

    Attributes:
        inputs: names and shapes
        weight_bytes: of the unit's own weight
    """

    def __init__(self, key: Key, c_in: int, c_out: int, batch: int, random: np.random.Generator) -> None:
        self.inputs: dict[str, tuple[int, ...]] = {}
        self.weight_bytes = 0
        self._nodes: list[Any] = []
        self._weights: list[Any] = []
        self._random, self._batch = random, batch
        if key.kind in {"linear", LAYER_NORM}:
            y = self._input((batch, *key.size, c_in), blocked=False)
        else:
            blocked = len(key.size) == 2 and key.kind != ATTENTION
            y = self._input((batch, c_in, *key.size), blocked=blocked, alone=key.kind != "conv")
        y = self._main(key, y, c_in, c_out)
        for name in key.tail:
            y = self._tail(key, name.rstrip("_"), y, c_out)
        self._output = y

    def model(self) -> bytes:
        """Serialized."""
        from onnx import TensorProto, helper

        inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in self.inputs.items()]
        output = helper.make_tensor_value_info(self._output, TensorProto.FLOAT, None)
        graph = helper.make_graph(self._nodes, "unit", inputs, [output], self._weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=10)
        return bytes(model.SerializeToString())

    def _node(self, op: str, inputs: list[str], prefix: str = "unit", **attributes: Any) -> str:
        from onnx import helper

        name = f"{prefix}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def _weight(self, shape: tuple[int, ...], value: float | None = None) -> str:
        from onnx import numpy_helper

        name = f"w{len(self._weights)}"
        made = self._random.standard_normal(shape, dtype=np.float32) * np.float32(0.05)
        array = made if value is None else np.full(shape, value, np.float32)
        self._weights.append(numpy_helper.from_array(array, name))
        return name

    def _input(self, shape: tuple[int, ...], blocked: bool = True, alone: bool = False) -> str:
        """A graph input, in the blocked layout where whole graphs would have it so.

        Args:
            alone: keep the runtime from fusing what follows with the convolution before it
        """
        name = f"x{len(self.inputs)}"
        self.inputs[name] = shape
        channels = shape[1]
        if not blocked or channels % 4:
            return name
        weights = [self._weight((channels, 1, 1, 1)), self._weight((channels,))]
        name = self._node("Conv", [name, *weights], _CONTEXT, kernel_shape=[1, 1], group=channels)
        return self._node("MaxPool", [name], _CONTEXT, kernel_shape=[1, 1]) if alone else name

    def _main(self, key: Key, x: str, c_in: int, c_out: int) -> str:
        window: dict[str, Any] = {
            "kernel_shape": list(key.kernel),
            "strides": list(key.stride),
            "pads": list(key.padding) * 2,
        }
        shape = (self._batch, c_in, *key.size)
        match key.kind:
            case "conv":
                groups = key.groups_at(c_in)
                weight = (c_out, c_in // groups, *key.kernel)
                self.weight_bytes = 4 * prod(weight)
                # a bias always: folded norms leave one
                names = [x, self._weight(weight), self._weight((c_out,))]
                return self._node("Conv", names, group=groups, dilations=list(key.dilation), **window)
            case "linear":
                self.weight_bytes = 4 * c_in * c_out
                weight_name = self._weight((c_in, c_out))
                if len(key.size) == 0:
                    return self._node("Gemm", [x, weight_name, self._weight((c_out,))])
                y = self._node("MatMul", [x, weight_name])
                return self._node("Add", [y, self._weight((c_out,))]) if key.bias else y
            case kind if kind == ATTENTION:
                return self._attention(key, x, c_in)
            case kind if kind == LAYER_NORM:
                return self._node("LayerNormalization", [x, self._weight((c_in,)), self._weight((c_in,))])
            case "max_pool2d":
                return self._node("MaxPool", [x], **window)
            case "avg_pool2d":
                return self._node("AveragePool", [x], count_include_pad=1, **window)
            case "adaptive_avg_pool2d" if key.kernel != (1, 1):
                size = [max(1, a // b) for a, b in zip(key.size, key.kernel, strict=True)]
                return self._node("AveragePool", [x], kernel_shape=size, strides=size)
            case "adaptive_avg_pool2d" | "mean" if len(key.size) == 2:
                return self._node("GlobalAveragePool", [x])
            case "mean":
                return self._node("ReduceMean", [x])
            case "cat":
                parts = [
                    self._input((self._batch, max(1, c), *key.size), blocked=len(key.size) == 2, alone=True)
                    for c in (c_in // 2, c_in - c_in // 2)
                ]
                return self._node("Concat", parts, axis=1)
            case "add" | "mul":
                other = self._input(shape, blocked=len(key.size) == 2, alone=True)
                return self._node(key.kind.capitalize(), [x, other])
            case "batch_norm":
                ones = [
                    self._weight((c_in,), 1.0),
                    *(self._weight((c_in,)) for _ in range(2)),
                    self._weight((c_in,), 1.0),
                ]
                return self._node("BatchNormalization", [x, *ones])
        return self._activation(key.kind, x)

    def _attention(self, key: Key, queries: str, heads: int) -> str:
        """As the exporter writes it."""
        keys, width = key.kernel
        turned = self._input((self._batch, heads, key.size[1], keys), blocked=False)
        values = self._input((self._batch, heads, keys, width), blocked=False)
        scaled = [self._node("Mul", [x, self._weight((), 0.5)]) for x in (queries, turned)]
        return self._node("MatMul", [self._node("Softmax", [self._node("MatMul", scaled)], axis=-1), values])

    def _tail(self, key: Key, name: str, y: str, c_out: int) -> str:
        if name == "batch_norm":  # folded into the layer
            return y
        if name != "add":
            return self._activation(name, y)
        if key.kind == "linear":
            return self._node("Add", [y, self._input((self._batch, *key.size, c_out), blocked=False)])
        span = [(k - 1) * d + 1 for k, d in zip(key.kernel, key.dilation, strict=True)]
        size = [(n + 2 * p - s) // t + 1 for n, p, s, t in zip(key.size, key.padding, span, key.stride, strict=True)]
        return self._node("Add", [y, self._input((self._batch, c_out, *size), blocked=len(size) == 2)])

    def _activation(self, name: str, x: str) -> str:
        if name == "hardtanh":
            return self._node("Clip", [x, self._weight((), 0.0), self._weight((), 6.0)])
        if name == "silu":
            return self._node("Mul", [x, self._node("Sigmoid", [x])])
        return self._node(_ACTIVATIONS[name], [x])
