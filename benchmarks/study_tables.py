"""The tables of docs/studies.md and its picture, made of the results that are committed beside it.

    python benchmarks/study_tables.py            # rewrites the tables, between their marks in docs/studies.md
    python benchmarks/study_tables.py --picture  # and draws docs/accuracy-and-cost.svg and docs/what-to-take.svg
    python benchmarks/study_tables.py --gather field-wrn10-2 DIR ...  # first keeps the finished runs of comparisons

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``; the names are the keys of `TABLES`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from regrow.report.style import looks
from regrow.training.statistics import accuracies, by_label, label_of, paired, sample_std

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
STUDIES = DOCS / "studies.md"
END = "<!-- end -->"
SETTINGS = {"wrn10-2": "WideResNet-10-2, 95% sparse", "wrn16-1": "WideResNet-16-1, 90% sparse"}
RIVALS = ("iee", "iee-paper", "rigl", "set", "static", "gmp", "dense")
ABLATIONS = ("iee-paper", "paper-without-exploration", "paper-without-freezing", "paper-from-zero",
             "paper-without-improvement", "paper-25", "paper-100")  # fmt: skip
STEPS_PER_EPOCH = 351
NAMES = {"iee": "IEE, 8 epochs: every 10th, 4th, 1st gradient", "iee-every-4": "IEE, every 4th, trained longer",
         "rigl": "RigL, trained longer", "gmp": "GMP, 8 epochs", "set": "SET, 8 epochs", "static": "static, 8 epochs",
         "iee-paper": "IEE as in its paper, 8 epochs"}  # fmt: skip
CHOICE = {"iee-from-dense": "IEE.from_dense()", "ste-late": "STE(ramp_end=0.9)", "gmp-late": "GMP(update_end=0.9)",
          "iee": "IEE.sparse()", "rigl": "RigL", "rigl-itop": "RigL.itop()", "mest": "MEST",
          "chase": "Chase"}  # fmt: skip
MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "triangle-down": "v", "cross": "P",
           "star": "*", "hexagon": "h"}  # fmt: skip

Runs = Sequence[Mapping[str, Any]]


def results(name: str, study: str = "exploration") -> dict[str, Runs]:
    """Label → runs of benchmarks/results/STUDY-NAME.json."""
    found = json.loads((HERE / "results" / f"{study}-{name}.json").read_text(encoding="utf-8"))
    return by_label(found["runs"])


def gather(name: str, places: Sequence[Path]) -> None:
    """Keeps the finished runs of comparisons in benchmarks/results/NAME.json, one for each label and seed."""
    path = HERE / "results" / f"{name}.json"
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []
    kept = {(label_of(run), run["seed"]): run for run in runs}
    for found in sorted(file for place in places for file in place.glob("runs/*/results.json")):
        for run in json.loads(found.read_text(encoding="utf-8"))["runs"]:
            if run.get("accuracy") is not None:
                kept[label_of(run), run["seed"]] = {**run, "run": f"runs/{found.parent.name}"}
    ordered = [kept[key] for key in sorted(kept)]
    path.write_text(json.dumps({"runs": ordered}, indent=1) + "\n", encoding="utf-8")


def score(runs: Runs) -> str:
    """Accuracy in percent, ± its sample standard deviation."""
    values = list(accuracies(runs).values())
    spread = sample_std(values)
    return f"{100 * fmean(values):.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")


def ahead(a: Runs, b: Runs) -> str:
    """Points that a is ahead of b, with the 95% interval."""
    found = paired(accuracies(a), accuracies(b))
    assert found.difference is not None
    if found.ci_low is None or found.ci_high is None:  # one seed has no interval
        return f"{100 * found.difference:+.1f}".replace("-", "−")
    numbers = (f"{100 * x:+.1f}".replace("-", "−") for x in (found.difference, found.ci_low, found.ci_high))
    return "{} ({} to {})".format(*numbers)


def average(runs: Runs, key: str) -> float:
    return fmean([float(run[key]) for run in runs])


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (heads, *rows)]
    return "\n".join([lines[0], "|---" * len(heads) + "|", *lines[1:]])


def rivals(setting: str) -> str:
    """IEE and its rivals at equal steps."""
    runs = results(setting)
    heads = ["", "accuracy", "IEE ahead by", "training cost", "inference FLOPs", "seconds a run"]
    return table(heads, [
        [label, score(runs[label]), "" if label == "iee" else ahead(runs["iee"], runs[label]),
         f"{average(runs[label], 'training_cost'):.2f}",
         f"{average(runs[label], 'inference_flops') / average(runs[label], 'dense_flops'):.2f}",
         f"{average(runs[label], 'seconds'):.0f}"]
        for label in RIVALS
    ])  # fmt: skip


def ablation() -> str:
    """Forms of the paper's method, and how far it is ahead of them."""
    found = {setting: results(f"ablation-{setting}") for setting in SETTINGS}
    heads = ["", "first setting", "paper ahead by", "cost", "second setting", "paper ahead by", "cost"]
    rows = []
    for label in ABLATIONS:
        row = [label]
        for runs in found.values():
            difference = "" if label == ABLATIONS[0] else ahead(runs[ABLATIONS[0]], runs[label])
            row += [score(runs[label]), difference, f"{average(runs[label], 'training_cost'):.2f}"]
        rows.append(row)
    return table(heads, rows)


def equal_cost(setting: str) -> str:
    """IEE and RigL for the same training FLOPs: what IEE spends on gradients, RigL spends on steps."""
    main = results(setting)
    found = {n: results(f"{setting}-cost-{n}") for n in (10, 4, 1)}
    pairs = [
        (10, found[10]["iee"], found[10]["rigl"]),
        (4, found[4]["iee"], found[4]["rigl"]),
        (1, main["iee"], found[1]["rigl"]),
        (4, found[1]["iee-every-4"], found[1]["rigl"]),
    ]
    heads = ["training cost", "IEE takes the gradients of", "epochs", "accuracy", "epochs of RigL", "accuracy",
             "IEE ahead by"]  # fmt: skip
    return table(heads, [
        [f"{average(rigl, 'training_cost'):.2f}", "every step" if n == 1 else f"every {n}th step", epochs(iee),
         score(iee), epochs(rigl), score(rigl), ahead(iee, rigl)]
        for n, iee, rigl in pairs
    ])  # fmt: skip


def field(setting: str) -> str:
    """Methods at equal steps, and how far each is ahead of pruning gradually."""
    runs = results(setting, "field")
    heads = ["", "seeds", "accuracy", "ahead of gmp-late by", "training cost"]
    return table(heads, [
        [label, str(len(runs[label])), score(runs[label]),
         "" if label == "gmp-late" else ahead(runs[label], runs["gmp-late"]),
         f"{average(runs[label], 'training_cost'):.2f}"]
        for label in by_accuracy(runs)
    ])  # fmt: skip


def cheap(setting: str) -> str:
    """Methods for the training FLOPs of IEE's cheap form, and how far that is ahead of each."""
    runs = results(setting, "cheap")
    heads = ["", "seeds", "accuracy", "IEE ahead by", "epochs", "training cost"]
    return table(heads, [
        [label, str(len(runs[label])), score(runs[label]), "" if label == "iee" else ahead(runs["iee"], runs[label]),
         epochs(runs[label]), f"{fmean(map(of_eight_epochs, runs[label])):.3f}"]
        for label in by_accuracy(runs)
    ])  # fmt: skip


def two_of_four() -> str:
    """Methods with 2 of every 4 weights, and how far IEE from the dense network is ahead of each."""
    runs = results("wrn10-2", "nm")
    heads = ["", "seeds", "accuracy", "iee-from-dense ahead by", "training cost"]
    return table(heads, [
        [label, str(len(runs[label])), score(runs[label]),
         "" if label == "iee-from-dense" else ahead(runs["iee-from-dense"], runs[label]),
         f"{average(runs[label], 'training_cost'):.2f}"]
        for label in by_accuracy(runs)
    ])  # fmt: skip


def of_eight_epochs(run: Mapping[str, Any]) -> float:
    """Training FLOPs, × those of eight dense epochs, as the oldest results have them."""
    of = run["cost_steps"] or run["steps"] if "cost_steps" in run else 8 * STEPS_PER_EPOCH
    return float(run["training_cost"] * of / (8 * STEPS_PER_EPOCH))


def by_accuracy(runs: Mapping[str, Runs]) -> list[str]:
    return sorted(runs, key=lambda label: -average(runs[label], "accuracy"))


def epochs(runs: Runs) -> str:
    return f"{average(runs, 'steps') / STEPS_PER_EPOCH:.1f}"


TABLES: dict[str, Callable[[], str]] = {
    "rivals, first setting": lambda: rivals("wrn10-2"),
    "rivals, second setting": lambda: rivals("wrn16-1"),
    "equal cost, first setting": lambda: equal_cost("wrn10-2"),
    "equal cost, second setting": lambda: equal_cost("wrn16-1"),
    "ablation": ablation,
    "cheap, first setting": lambda: cheap("wrn10-2"),
    "cheap, second setting": lambda: cheap("wrn16-1"),
    "field, first setting": lambda: field("wrn10-2"),
    "field, second setting": lambda: field("wrn16-1"),
    "field, 98%": lambda: field("wrn10-2-98"),
    "2:4": two_of_four,
}


def filled(text: str) -> str:
    """The document with its tables made anew."""
    for name, make in TABLES.items():
        mark = f"<!-- table: {name} -->"
        if mark not in text:
            raise SystemExit(f"{STUDIES} has no {mark}")
        before, _, rest = text.partition(mark)
        text = f"{before}{mark}\n{make()}\n{END}{rest.partition(END)[2]}"
    return text


def drawn(path: Path, fill: Callable[[Any, str], None]) -> None:
    """A picture of accuracy against training cost, a panel for each setting.

    Args:
        path: of the picture.
        fill: draws the runs of a setting into its panel.
    """
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    plt.rcParams |= {"svg.hashsalt": "regrow", "font.size": 9, "svg.fonttype": "none"}
    figure, panels = plt.subplots(1, len(SETTINGS), figsize=(9, 4.1), constrained_layout=True)
    for axes, (setting, title) in zip(panels, SETTINGS.items(), strict=True):
        fill(axes, setting)
        axes.set(title=title, xlabel="training FLOPs, × dense training for 8 epochs", ylabel="test accuracy, %")
        axes.grid(color="#e3e7ea")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, metadata={"Date": None})


def point(axes: Any, points: Sequence[Runs], look: Any, name: str) -> None:
    """Means of runs with their sample standard deviations, as a line."""
    axes.errorbar(
        [fmean(map(of_eight_epochs, runs)) for runs in points],
        [100 * fmean(list(accuracies(runs).values())) for runs in points],
        [100 * (sample_std(list(accuracies(runs).values())) or 0) for runs in points],
        color=look.color, marker=MARKERS[look.symbol], label=name, capsize=2, linewidth=1.4, markersize=5,
    )  # fmt: skip


def longer_training(axes: Any, setting: str) -> None:
    """IEE and RigL, trained for longer, and others for eight epochs."""
    main = results(setting)
    longer = results(f"{setting}-cost-1")
    lines = {
        "iee": [results(f"{setting}-cost-{n}")["iee"] for n in (10, 4)] + [main["iee"]],
        "iee-every-4": [results(f"{setting}-cost-4")["iee"], longer["iee-every-4"]],
        "rigl": [main["rigl"]] + [results(f"{setting}-cost-{n}")["rigl"] for n in (10, 4, 1)],
    }
    dots = {label: [main[label]] for label in ("gmp", "set", "static", "iee-paper")}
    shades = looks({label: label.removesuffix("-every-4") for label in (*lines, *dots)})
    for label, points in {**lines, **dots}.items():
        point(axes, points, shades[label], NAMES[label])


def choice(axes: Any, setting: str) -> None:
    """What is left of a network and at what price: from the dense network, and sparse from the first step."""
    runs = {**results(setting, "field"), **results(setting, "cheap")}
    shades = looks({label: label for label in CHOICE})
    for label, name in CHOICE.items():
        point(axes, [runs[label]], shades[label], name)
    axes.set_xscale("log")
    axes.set_xticks([0.1, 0.2, 0.3, 0.4, 0.6], ["0.1", "0.2", "0.3", "0.4", "0.6"], minor=False)
    axes.minorticks_off()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", action="store_true", help="draw the pictures in docs/, too")
    parser.add_argument("--gather", nargs="+", metavar="NAME DIR", help="results/NAME.json, of these comparisons")
    args = parser.parse_args()
    if args.gather:
        gather(args.gather[0], [Path(place) for place in args.gather[1:]])
    STUDIES.write_text(filled(STUDIES.read_text(encoding="utf-8")), encoding="utf-8")
    if args.picture:
        drawn(DOCS / "accuracy-and-cost.svg", longer_training)
        drawn(DOCS / "what-to-take.svg", choice)


if __name__ == "__main__":
    main()
