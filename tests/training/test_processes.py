"""Two real processes train together: DistributedDataParallel, sharded data, one writer, and the same after a stop."""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

import tiny_recipe as tiny
from outcome import outcome
from regrow import storage
from regrow.training import checkpoint, loop
from regrow.training.evaluation import accuracy
from regrow.training.progress import Interrupted
from regrow.training.recipe import load
from regrow.training.run import Run

SHARED = ("--data.batch_size", "8", "--train.accumulate", "2")
EVERYTHING = (
    "--model.name", "wrn10-1", "--model.options", "{dropout: 0.2}", "--train.ema", "0.9", "--train.recalibrate", "2",
    "--train.clip_norm", "1", "--data.val_fraction", "0.2", "--criterion", "taylor",
)  # fmt: skip
VARIANTS = {"everything": EVERYTHING, "channels": tiny.CHANNELS}
STOPS = {"everything": (4, 13), "channels": (12,)}  # between two lines of the metrics


def worker(rank: int, where: str) -> None:
    """One of the two: trains each variant unbroken, and with two stops."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                   "MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true"}  # fmt: skip
    # met at a file, as ports that are free now may be taken in a moment
    torch.distributed.init_process_group("gloo", init_method=f"file://{where}/meeting", rank=rank, world_size=2)
    torch.set_num_threads(1)
    finish, stop_wanted = loop.Trainer._finish, loop.Trainer._stop_wanted

    def noted(self):
        part = self.run
        assert type(part.prepared) is DistributedDataParallel
        assert part.accelerator.num_processes == 2
        assert len(part.accelerator._models) == 1
        state = {"masks": part.sparsifier.masks, "weights": dict(part.model.named_parameters())}
        torch.save(state, f"{where}/{name}-{rank}.pt")
        return finish(self)

    loop.Trainer._finish = noted
    for name, words in VARIANTS.items():
        recipe = load(f"{where}/tiny.yaml", [*words, *SHARED])
        loop.Trainer._stop_wanted = stop_wanted
        loop.train(recipe, Path(where) / name, quiet=True)
        for stop in STOPS[name]:
            loop.Trainer._stop_wanted = lambda self, _, stop=stop: self.run.step == stop
            with pytest.raises(Interrupted):
                loop.train(recipe, Path(where) / f"{name}-stopped", resume=True, quiet=True)
            torch.distributed.barrier()
        loop.Trainer._stop_wanted = stop_wanted
        loop.train(recipe, Path(where) / f"{name}-stopped", resume=True, quiet=True)
        torch.distributed.barrier()
    gc.collect()
    torch.distributed.barrier()  # a process that leaves while the other still talks to it may abort
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    where = tmp_path_factory.mktemp("two")
    tiny.write(where)
    torch.multiprocessing.spawn(worker, args=(str(where),), nprocs=2)
    return where


@pytest.mark.parametrize("variant", VARIANTS)
def test_both_have_the_same_network(variant, trained) -> None:
    one, two = (torch.load(trained / f"{variant}-{rank}.pt", weights_only=True) for rank in (0, 1))
    for part in ("masks", "weights"):
        assert one[part].keys() == two[part].keys()
        assert all(torch.equal(value, two[part][name]) for name, value in one[part].items())


@pytest.mark.parametrize("variant", VARIANTS)
def test_stopped_and_continued(variant, trained) -> None:
    assert outcome(trained / f"{variant}-stopped") == outcome(trained / variant)
    assert len(torch.load(checkpoint.path_in(trained / variant), weights_only=True)["loss_sums"]) == 2


def test_widths_change_on_both_at_once(trained) -> None:
    [entry] = json.loads((trained / "channels" / "results.json").read_text())["runs"]
    assert entry["inference_flops"] <= 0.4 * entry["dense_flops"]


def test_the_accuracy_is_that_of_the_saved_model(trained) -> None:
    """Evaluated by one process alone; the batch norms of the other had seen other images."""
    alone = Run(load(trained / "everything" / "recipe.yaml"), "alone")
    storage.load(alone.model, trained / "everything" / "model")
    [entry] = json.loads((trained / "everything" / "results.json").read_text())["runs"]
    for part, key in ((alone.data.val, "validation_accuracy"), (alone.data.test, "accuracy")):
        assert entry[key] == accuracy(alone.model, part.epoch(0), torch.device("cpu"))


def test_launched_as_on_many_gpus(tmp_path) -> None:
    """The documented command; what is said and written is said and written by one."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "regrow"]
    command += ["train", str(tiny.write(tmp_path)), *SHARED, "--out", str(tmp_path / "run")]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test accuracy") == 2  # of one process: in its progress, and at the end
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    # of 144 images, 2 processes × 8 images × 2 batches a step; one process would need 9 steps for an epoch
    assert lines[-1]["epoch"] == 30 / 4.5
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    assert len(lines) == 13
    assert (tmp_path / "run" / "report.html").exists()
