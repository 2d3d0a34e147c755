"""Which models can regrow prune by channels, is it right, and how does torch-pruning do on the same models?

Every classification model of torchvision and one or several models of each timm family, at small images and with random
weights; models of transformers from tiny configurations; torchvision's detectors, segmenters and video networks;
detectors of ultralytics and decoders of segmentation-models-pytorch, where these are installed.

A model counts as verified if it has groups and if, with about half of the channels removed at random in every group,
the thin model computes what the masked one computes: in eval mode and after a training step, the largest difference at
most 1e-5 of the largest output; `seconds` is the processor time of the coupling and `prunable_normalised` the share of
the parameters that can go with `Channels(normalised=True)`, null where that takes too long. A model all of whose
channels are normalised together is verified with that option (`normalised` is true): in eval and in training mode the
thin model must compute what the masked one does if its norms leave out what was removed. torch-pruning and
torch-kirigami count as running if their pruner finishes in 90 s of processor time, removes parameters, and the model
still runs and gives outputs of the same shape; their numbers are not verified.

    python benchmarks/coverage.py [--only NAME ...] [--again] [--tool regrow torch_pruning kirigami]

Results go to results/coverage.json after each model; what is there is not run again. Each run has a process of its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import coverage_models

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

RESULTS = Path(__file__).parent / "results" / "coverage.json"
TOLERANCE = 1e-5
SINGLE = {"transformers:mixtral"}  # a grouped product has no double precision
DOUBLE_BELOW = 120_000_000  # parameters; larger models are compared in float32, to fit into memory
PACKAGES = {"regrow": "regrow", "torch_pruning": "torch_pruning", "kirigami": "torch_kirigami"}
SECONDS = {"regrow": 600, "torch_pruning": 90, "kirigami": 90}

TORCHVISION_SIZES = {"inception_v3": 299, "alexnet": 80, "maxvit_t": 224, "vit_h_14": 56}  # all others: 64
TIMM = """
resnet18 resnet26t resnetv2_50 resnetv2_50x1_bit wide_resnet50_2 resnext50_32x4d seresnet50 seresnext50_32x4d
ecaresnet26t skresnet18 resnest14d res2net50_26w_4s regnetx_002 regnety_002 regnetz_b16 mobilenetv1_100 mobilenetv2_050
mobilenetv3_small_050 mobilenetv4_conv_small_035 mobilenetv4_hybrid_medium efficientnet_b0 tf_efficientnetv2_b0
efficientnet_lite0 mixnet_s mnasnet_small fbnetc_100 spnasnet_100 hardcorenas_a tinynet_e lcnet_035 ghostnet_050
ghostnetv2_100 repghostnet_050 convnext_atto convnextv2_atto densenet121 dla34 dpn48b dpn68 vgg11_bn inception_v4@160
inception_resnet_v2@160 xception41 xception71 vovnet39a ese_vovnet19b_dw cspresnet50 cspdarknet53 darknet53
hrnet_w18_small hgnet_tiny hgnetv2_b0 selecsls42 senet154 nfnet_f0 nf_regnet_b0 rexnet_100 repvgg_a0 repvit_m0_9
mobileone_s0 resnet51q gernet_s botnet26t_256@256 halonet26t@256 lambda_resnet26t@256 bat_resnext26ts@256
vit_tiny_patch16_224 deit_tiny_patch16_224 deit3_small_patch16_224 beit_base_patch16_224 cait_xxs24_224
swin_tiny_patch4_window7_224@224 swinv2_cr_tiny_ns_224@224 swinv2_tiny_window8_256@256 mixer_s32_224 gmlp_s16_224
resmlp_12_224 poolformer_s12 poolformerv2_s12 convformer_s18 caformer_s18 mambaout_femto levit_128s@224 pit_ti_224@224
pvt_v2_b0 twins_svt_small@224 visformer_tiny@224 volo_d1_224@224 xcit_nano_12_p16_224@224 tnt_s_patch16_224@224
crossvit_tiny_240@240 coat_lite_tiny@224 convit_tiny@224 convmixer_768_32 davit_tiny edgenext_xx_small@256
efficientformer_l1@224 efficientformerv2_s0@224 efficientvit_b0@224 efficientvit_m0@224 fasternet_t0 fastvit_t8@256
focalnet_tiny_srf gcvit_xxtiny@224 hiera_tiny_224@224 inception_next_atto maxvit_nano_rw_256@256
coatnet_nano_rw_224@224 mobilevit_xxs@256 mobilevitv2_050@256 mvitv2_tiny@224 nest_tiny@224 nextvit_small@224
pnasnet5large@160 nasnetalarge@160 rdnet_tiny sequencer2d_s@224 shvit_s1@224 starnet_s1 swiftformer_xs@224
tiny_vit_5m_224@224 tresnet_m vitamin_small_224@224 eva02_tiny_patch14_224@56 vit_relpos_small_patch16_224
vit_small_r26_s32_224@64 samvit_base_patch16@256
"""


def models() -> dict[str, int]:
    """``library:name`` → image size, for everything that is measured."""
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    sizes = {f"torchvision:{name}": TORCHVISION_SIZES.get(name, 64) for name in names}
    for entry in TIMM.split():
        name, _, size = entry.partition("@")
        sizes[f"timm:{name}"] = int(size or 64)
    sizes |= {f"transformers:{name}": 0 for name in coverage_models.TRANSFORMERS}
    further = {"torchvision-more": coverage_models.FURTHER}
    further |= {name: sizes for name, sizes in coverage_models.OTHERS.items() if importlib.util.find_spec(name)}
    return sizes | {f"{library}:{name}": size for library, names in further.items() for name, size in names.items()}


def build(name: str, size: int) -> tuple[Any, tuple[Any, ...]]:
    """The model with random weights, and two examples of what it takes; constants (zeros, ones, tiny scales) are made
    random too, or equalities could hold for want of values."""
    import timm
    import torch
    import torchvision

    torch.manual_seed(0)
    library, _, kind = name.partition(":")
    inputs: tuple[Any, ...] = (
        (torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)),) if size else ()
    )
    if library == "transformers":
        model, inputs = coverage_models.transformer(kind)
    elif library == "torchvision-more":
        model, inputs = coverage_models.further(kind, size)
    elif library == "ultralytics":
        model = coverage_models.ultralytics(kind)
    elif library == "segmentation_models_pytorch":
        model = coverage_models.decoder(kind)
    elif library == "torchvision":
        options: dict[str, Any] = {"init_weights": False} if kind in ("googlenet", "inception_v3") else {}
        if kind.startswith("vit"):
            options["image_size"] = size
        model = torchvision.models.get_model(kind, weights=None, **options)
    else:
        try:
            model = timm.create_model(kind, pretrained=False, img_size=size)
        except TypeError:
            model = timm.create_model(kind, pretrained=False)
    with torch.no_grad():
        for p in model.parameters():
            if p.numel() == 1 or bool((p == p.flatten()[0]).all()) or float(p.abs().max()) < 1e-3:
                p.add_(torch.empty_like(p).uniform_(0.1, 0.6))
        for key, b in model.named_buffers():
            if "running_mean" in key:
                b.normal_(0, 0.1)
            if "running_var" in key:
                b.uniform_(0.5, 1.5)
    return model, inputs


def prunable(model: Any, coupling: Any) -> float:
    """The share of parameters that go with a channel of some group."""
    import torch

    stays: dict[tuple[str, int], Any] = {}
    for group in coupling.groups:
        for part in group.slices:
            before = stays.get((part.name, part.dim), torch.ones(part.channel.numel(), dtype=torch.bool))
            stays[part.name, part.dim] = before & (part.channel < 0)
    total = outside = 0.0
    for name, p in model.named_parameters():
        total += p.numel()
        shares = [float(stays[name, d].float().mean()) for d in range(p.dim()) if (name, d) in stays]
        outside += p.numel() * math.prod(shares)
    return 1 - outside / total


def run_regrow(name: str, size: int) -> dict[str, Any]:
    """Couples and verifies one model."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    import torch

    import masked_and_thin as check
    from regrow.coupling.couple import couple
    from regrow.errors import UserError

    model, inputs = build(name, size)
    count = sum(p.numel() for p in model.parameters())
    record: dict[str, Any] = {"image": size, "parameters": count, "groups": 0, "verified": False, "reason": None}
    kind = torch.float64 if count < DOUBLE_BELOW and name not in SINGLE else torch.float32
    try:
        coupling = couple(model, tuple(x[:1] for x in inputs))
    except UserError as error:
        return {**record, "reason": str(error)}
    normalised = None
    try:
        normalised = couple(model, inputs, normalised=True)
        record["prunable_normalised"] = round(prunable(model, normalised), 4)
    except UserError as error:  # an option: what it does not find in time says nothing of the rest
        record |= {"prunable_normalised": None, "normalised_reason": str(error)}
    if not coupling.groups and normalised is not None and normalised.groups:
        coupling, record["normalised"] = normalised, True
    record["seconds"] = round(coupling.seconds, 2)
    inputs = tuple(x.to(kind) if x.is_floating_point() else x for x in inputs)
    record["groups"], record["channels"] = len(coupling.groups), sum(group.size for group in coupling.groups)
    record["prunable"] = round(prunable(model, coupling), 4)
    record["dense"] = dict(Counter(coupling.dense.values()).most_common(3))
    if not coupling.groups:
        return {**record, "reason": next(iter(record["dense"]))}
    model = model.to(kind)
    keep = check.random_keep(coupling, 0.5)
    record["precision"] = str(kind).removeprefix("torch.")
    if record.get("normalised"):
        record["deviation"] = check.normed_deviation(model, coupling, keep, inputs)
        record["deviation_in_training"] = check.normed_deviation(model, coupling, keep, inputs, training=True)
    else:
        record["deviation"] = check.deviation(model, coupling, keep, inputs)
        record["deviation_after_step"] = check.deviation(model, coupling, keep, inputs, steps=1)
    record["verified"] = max(off for key, off in record.items() if key.startswith("deviation")) <= TOLERANCE
    if not record["verified"]:
        record["reason"] = "the thin model does not compute what the masked one computes"
    return record


def numbers(out: Any) -> list[Any]:
    """The tensors of numbers that a model returns."""
    from regrow.inputs import output_tensors

    return [t for t in output_tensors(out) if t.is_floating_point()]


def first(out: Any) -> Any:
    """The first of them."""
    return numbers(out)[0]


def outcome(model: Any, inputs: tuple[Any, ...], shape: Any, before: int, seconds: float) -> dict[str, Any]:
    """What another tool's pruner has left of a model."""
    import torch

    with torch.no_grad():
        runs = first(model(*inputs)).shape == shape
    left = sum(p.numel() for p in model.parameters()) / before
    reason = "no effect" if left == 1 else None if runs else "its outputs have another shape"
    return {"runs": reason is None, "left": round(left, 4), "seconds": round(seconds, 2), "reason": reason}


def run_torch_pruning(name: str, size: int) -> dict[str, Any]:
    """Half of the channels by torch-pruning, as its documentation does it."""
    import torch_pruning as tp

    def pruned(with_heads: bool) -> tuple[Any, Any, int]:
        model = build(name, size)[0].eval()
        before, shape = sum(p.numel() for p in model.parameters()), first(model(*inputs)).shape
        width = shape[1] if len(shape) == 4 else shape[-1]  # of maps, or of what a linear layer gives
        last = [m for m in model.modules() if getattr(m, "out_features", getattr(m, "out_channels", None)) == width]
        last += coverage_models.made_last(model) if name.startswith("torchvision-more:") else []
        heads = {m.qkv: m.num_heads for m in model.modules() if hasattr(m, "qkv") and hasattr(m, "num_heads")}
        pruner = tp.pruner.BasePruner(
            model,
            inputs,
            importance=tp.importance.MagnitudeImportance(p=2),
            pruning_ratio=0.5,
            ignored_layers=last,
            num_heads=heads if with_heads else {},
            output_transform=numbers,
        )
        pruner.step()
        return model, shape, before

    inputs = tuple(x[:1] for x in build(name, size)[1])
    start = time.process_time()
    try:
        model, shape, before = pruned(with_heads=True)
    except Exception:
        model, shape, before = pruned(with_heads=False)
    return outcome(model, inputs, shape, before, time.process_time() - start)


def run_kirigami(name: str, size: int) -> dict[str, Any]:
    """Half of the channels by torch-kirigami, as its first steps do it; it keeps the outputs itself. A candidate is an
    eighth of a layer's channels, which lie side by side as in its ImageNet examples: with one channel each, a ResNet-18
    takes more than 100 seconds."""
    from torch_kirigami import DependencyGraph
    from torch_kirigami.pruning import Candidate, CandidateSpace, ChannelRatio, Greedy, Magnitude, Pruner

    model, inputs = build(name, size)
    model = model.eval()
    before, shape = sum(p.numel() for p in model.parameters()), first(model(*inputs)).shape
    start = time.process_time()
    pruner = Pruner(model, graph=DependencyGraph.build(model, args=inputs))
    found = pruner.discover_candidates()
    candidates = []
    for axis in found.channel_axes:
        single = [c.remove[0].fully_selected_indices(axis.dim) for c in found.candidates if c.axis == axis]
        many = -(-len(single) // 8)
        for i in range(0, len(single), many):
            together = [index for part in single[i : i + many] for index in part]
            candidates.append(Candidate(f"{len(candidates):06d}", (axis.select(together),), axis))
    space = CandidateSpace(tuple(candidates), found.channel_axes)
    pruner.prune(space, budget=ChannelRatio(0.5), strategy=Greedy(Magnitude(p=2)))
    return outcome(model, inputs, shape, before, time.process_time() - start)


TOOLS = {"regrow": run_regrow, "torch_pruning": run_torch_pruning, "kirigami": run_kirigami}


def in_own_process(tool: str, name: str, size: int) -> dict[str, Any]:
    """The record of one tool on one model, or why there is none."""
    command = [sys.executable, __file__, "--one", tool, name, str(size)]
    failed = {"verified": False, "groups": 0} if tool == "regrow" else {"runs": False}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10 * SECONDS[tool])
    except subprocess.TimeoutExpired:
        done = None
    if done is None or done.returncode == -signal.SIGXCPU:
        return {**failed, "reason": f"not finished after {SECONDS[tool]} s of processor time"}
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        return json.loads(lines[-1])  # type: ignore[no-any-return]
    errors = done.stderr.strip().splitlines()
    return {**failed, "reason": errors[-1][:200] if errors else f"ended with code {done.returncode}"}


def summary(records: dict[str, Any]) -> dict[str, Any]:
    """Counts for each library."""
    result: dict[str, Any] = {}
    for library in dict.fromkeys(name.partition(":")[0] for name in records):
        mine = [r for name, r in records.items() if name.startswith(f"{library}:")]
        verified = sum(r.get("verified", False) for r in mine)
        result[library] = {
            "models": len(mine),
            "verified": verified,
            "share": round(verified / max(len(mine), 1), 4),
            "normalised": sum(r.get("verified", False) and r.get("normalised", False) for r in mine),
            "slowest_coupling": max((r.get("seconds", 0.0) for r in mine), default=0.0),
        }
        for tool in ("torch_pruning", "kirigami"):
            tried = [r[tool] for r in mine if r.get(tool)]
            result[library] |= {f"{tool}_runs": sum(one["runs"] for one in tried), f"{tool}_tried": len(tried)}
    return result


def save(records: dict[str, Any]) -> None:
    """Writes all results at once."""
    RESULTS.parent.mkdir(exist_ok=True)
    text = json.dumps({"tolerance": TOLERANCE, "summary": summary(records), "models": records}, indent=1)
    temporary = RESULTS.with_suffix(".tmp")
    temporary.write_text(text + "\n")
    os.replace(temporary, RESULTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="names like torchvision:resnet50")
    parser.add_argument("--again", action="store_true", help="also what has been measured")
    parser.add_argument("--tool", nargs="*", choices=TOOLS, default=[*TOOLS], help="all that are installed")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        import torch

        warnings.filterwarnings("ignore")
        torch.set_num_threads(1)
        tool, name, size = options.one
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS[tool], SECONDS[tool] + 5))
        print(json.dumps(TOOLS[tool](name, int(size))))
        return
    tools = [tool for tool in options.tool if importlib.util.find_spec(PACKAGES[tool])]
    records = json.loads(RESULTS.read_text())["models"] if RESULTS.exists() else {}
    for name, size in models().items():
        if options.only and name not in options.only:
            continue
        for tool in tools:
            record = records.get(name, {})
            done = "verified" in record if tool == "regrow" else record.get(tool)
            if done and not options.again:
                continue
            found = in_own_process(tool, name, size)
            print(name, tool, found, flush=True)
            if tool != "regrow":
                records.setdefault(name, {})[tool] = found
            else:
                records[name] = found | {other: record[other] for other in TOOLS if other in record}
            save(records)
    print(json.dumps(summary(records), indent=1))


if __name__ == "__main__":
    main()
