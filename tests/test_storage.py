"""Saved models come back bit for bit, and what does not fit is refused before anything changes."""

import json
import os
import shutil
import stat

import pytest
import torch
from torch import nn

import attack_saves
from damage import edit, truncate
from regrow import UserError, bitmask, storage


def network(seed=0, tied=True, width=64):
    torch.manual_seed(seed)
    linears = [nn.Linear(width, 40), nn.Linear(40, 40), nn.Linear(40, 40)]
    model = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Flatten(), *linears)
    if tied:
        model[5].weight = model[4].weight
    return model


def sparsify(model, density=0.1):
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.masked_fill_(torch.rand(p.shape) > density, 0.0)
    return model


def bits(model):
    state = model.state_dict()
    return {name: t.detach().contiguous().flatten().view(torch.uint8).tolist() for name, t in state.items()}


@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_round_trip_is_exact(tmp_path, density, dtype):
    model = sparsify(network(), density).to(dtype)
    with torch.no_grad():
        special = torch.tensor([-0.0, float("nan"), float("inf"), 1e-40])
        model[0].weight.view(-1)[:4] = special.to(dtype)
    storage.save(model, tmp_path / "m")
    fresh = network(seed=1).to(dtype)
    assert storage.load(fresh, tmp_path / "m") is fresh
    assert bits(fresh) == bits(model)
    assert fresh[5].weight is fresh[4].weight


def test_sparse_files_are_small_and_described(tmp_path):
    storage.save(sparsify(network()), tmp_path / "sparse", extra={"accuracy": 0.5})
    storage.save(network(), tmp_path / "dense")
    sizes = [(tmp_path / name / storage.WEIGHTS).stat().st_size for name in ("sparse", "dense")]
    assert sizes[0] < 0.35 * sizes[1]
    manifest = storage.read_manifest(tmp_path / "sparse")
    entry = manifest["tensors"]["0.weight"]
    assert (entry["shape"], entry["dtype"], entry["encoding"]) == ([64, 3, 3, 3], "float32", "bitmask")
    assert entry["density"] == pytest.approx(0.1, abs=0.03)
    assert manifest["tied"] == {"5.weight": "4.weight"}
    assert manifest["extra"] == {"accuracy": 0.5}


def test_saving_again_replaces_the_whole(tmp_path):
    storage.save(network(), tmp_path / "m")
    second = network(seed=2)
    storage.save(second, tmp_path / "m")
    assert bits(storage.load(network(), tmp_path / "m")) == bits(second)
    assert sorted(os.listdir(tmp_path)) == ["m"]
    assert sorted(os.listdir(tmp_path / "m")) == ["manifest.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("extra", "reason"),
    [({"a": {1}}, "type set"), ({(1, 2): 0}, "keys must be"), ({"f": storage.save}, "type function")],
)
def test_a_failed_save_leaves_the_old_one(tmp_path, extra, reason):
    model = network()
    storage.save(model, tmp_path / "m")
    with pytest.raises(UserError, match=f"extra cannot be kept in a manifest, as JSON cannot hold it: .*{reason}"):
        storage.save(network(seed=3), tmp_path / "m", extra=extra)
    assert sorted(os.listdir(tmp_path)) == ["m"]
    assert bits(storage.load(network(), tmp_path / "m")) == bits(model)


def test_a_kill_or_an_error_at_any_moment_leaves_the_old_model_or_the_new_one(tmp_path):
    tried, wrong = attack_saves.crashes(tmp_path)
    assert wrong == []
    assert tried > 100


def test_readers_meanwhile_get_the_old_model_or_the_new_one(tmp_path):
    tried, wrong = attack_saves.races(12, 2, tmp_path)
    assert wrong == []
    assert tried


@pytest.mark.parametrize(("damage", "must_refuse"), [(attack_saves.damaged, False), (attack_saves.flipped, True)])
def test_random_damage_is_refused_and_changes_nothing(tmp_path, damage, must_refuse):
    assert attack_saves.attack(120, damage, tmp_path, must_refuse) == []


def test_a_save_goes_where_a_link_leads(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to("far/m")
    for seed in (0, 1):  # nothing there yet, and an earlier save
        storage.save(network(seed), tmp_path / "link")
        assert (tmp_path / "link").is_symlink()
        assert bits(storage.load(network(2), tmp_path / "far" / "m")) == bits(network(seed))
    assert sorted(os.listdir(tmp_path / "far" / "m")) == ["manifest.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("mask", "directory", "file"), [(0o022, 0o755, 0o644), (0o077, 0o700, 0o600), (0, 0o777, 0o666)]
)
def test_permissions_follow_the_umask_and_then_the_earlier_save(tmp_path, mask, directory, file):
    target = tmp_path / "m"
    old = os.umask(mask)
    try:
        storage.save(network(), target)
    finally:
        os.umask(old)
    for _ in range(2):
        modes = [stat.S_IMODE(path.stat().st_mode) for path in (target, *target.iterdir())]
        assert modes == [directory, file, file]
        storage.save(network(seed=1), target)


def test_saves_from_before_checksums_are_read(tmp_path):
    def without(manifest):
        manifest["version"] = 1
        for key in ("weights", "checksum"):
            manifest.pop(key)

    model = sparsify(network())
    storage.save(model, tmp_path / "m")
    manifest = json.loads((tmp_path / "m" / storage.MANIFEST).read_text())
    without(manifest)
    (tmp_path / "m" / storage.MANIFEST).write_text(json.dumps(manifest))
    assert bits(storage.load(network(1), tmp_path / "m")) == bits(model)
    storage.save(network(2), tmp_path / "m")
    assert bits(storage.load(network(1), tmp_path / "m")) == bits(network(2))


def test_a_manifest_of_another_save_is_noticed(tmp_path):
    for seed in (0, 1):
        storage.save(network(seed), tmp_path / str(seed))
    shutil.copy(tmp_path / "0" / storage.MANIFEST, tmp_path / "1")
    with pytest.raises(UserError, match=r"is damaged: its checksum is not that of manifest\.json: restore it"):
        storage.load(network(2), tmp_path / "1")


def test_other_things_are_not_overwritten(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="holds something else than a saved model"):
        storage.save(network(), tmp_path)
    with pytest.raises(UserError, match="holds something else than a saved model"):
        storage.save(network(), tmp_path / "thesis.tex")
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_state_that_is_no_tensor_is_refused(tmp_path):
    class Odd(nn.Linear):
        def get_extra_state(self):
            return "text"

    with pytest.raises(UserError, match="'_extra_state' is no tensor but str"):
        storage.save(Odd(2, 2), tmp_path / "m")
    assert not (tmp_path / "m").exists()


class Counting(nn.Module):
    """State beside its tensors, of which state_dict() gets a copy."""

    def __init__(self, count=0):
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.count = count

    def get_extra_state(self):
        return torch.tensor(self.count)

    def set_extra_state(self, state):
        self.count = int(state)


def test_extra_state_made_of_a_tensor_comes_back(tmp_path):
    storage.save(nn.Sequential(Counting(7)), tmp_path / "m")
    assert storage.load(nn.Sequential(Counting()), tmp_path / "m")[0].count == 7
    assert storage.load_tensors(tmp_path / "m")["0._extra_state"] == 7


def test_state_that_only_a_hook_makes_is_refused(tmp_path):
    model = nn.Linear(2, 2)
    model.register_state_dict_post_hook(lambda module, state, prefix, _: state.update(bias=state["bias"] + 1))
    with pytest.raises(UserError, match="'bias' is no parameter or buffer, but made by a hook"):
        storage.save(model, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def holding(**tensors):
    model = nn.Module()
    for name, tensor in tensors.items():
        model.register_buffer(name, tensor)
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.LazyLinear(4), "'weight' has no shape yet"),
        (holding(w=torch.ones(1, 4).expand(3, 4)), "entries of the tensor 'w' share their memory"),
        (holding(w=torch.ones(2, dtype=torch.complex128)), "the tensor 'w' is complex128, which a safetensors file"),
        (holding(__metadata__=torch.ones(2)), "cannot hold a tensor called '__metadata__'"),
    ],
)
def test_what_could_not_come_back_is_refused(tmp_path, model, message):
    with pytest.raises(UserError, match=message):
        storage.save(model, tmp_path / "m")
    assert os.listdir(tmp_path) == []


EIGHT_BITS = [
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
]


@pytest.mark.parametrize("dtype", EIGHT_BITS)
def test_every_type_of_eight_bits_comes_back(tmp_path, dtype):
    whole = torch.zeros(16, 16, dtype=torch.uint8)
    whole[0] = torch.arange(16)
    storage.save(holding(w=whole.view(dtype)), tmp_path / "m")
    assert storage.read_manifest(tmp_path / "m")["tensors"]["w"]["encoding"] == "bitmask"
    again = storage.load(holding(w=torch.zeros(16, 16, dtype=torch.uint8).view(dtype)), tmp_path / "m")
    assert again.w.dtype is dtype
    assert torch.equal(again.w.view(torch.uint8), whole)


def test_tensors_may_be_called_as_the_parts_of_others(tmp_path):
    def made(value):
        parts = {f"w{part}": torch.full((20,), value) for part in (bitmask.BITS, bitmask.VALUES)}
        return holding(w=value * torch.eye(20), **parts)

    storage.save(made(2.0), tmp_path / "m")
    assert bits(storage.load(made(0.0), tmp_path / "m")) == bits(made(2.0))


def test_the_model_inside_of_wrappers_is_saved_and_loaded(tmp_path):
    model = sparsify(network())
    storage.save(nn.DataParallel(torch.compile(model, backend="eager")), tmp_path / "m")
    assert bits(storage.load(network(1), tmp_path / "m")) == bits(model)
    wrapped = nn.DataParallel(network(1))
    assert storage.load(wrapped, tmp_path / "m") is wrapped
    assert bits(wrapped.module) == bits(model)


def test_a_model_saved_in_an_average_is_said(tmp_path):
    average = torch.optim.swa_utils.AveragedModel(network())
    storage.save(average, tmp_path / "m")
    assert bits(storage.load(torch.optim.swa_utils.AveragedModel(network(1)), tmp_path / "m")) == bits(average)
    with pytest.raises(UserError, match=r"was saved with a wrapper around the model: save the model inside"):
        storage.load(network(), tmp_path / "m")


@pytest.mark.parametrize(
    ("damage", "model", "message"),
    [
        (None, lambda: network(width=32), r"'0.weight' has shape \[64, 3, 3, 3\] in .*, but \[32, 3, 3, 3\] in"),
        (None, lambda: nn.Linear(2, 2), "has no tensor 'bias': it was saved from another model"),
        (None, lambda: nn.Sequential(*network(), nn.Linear(2, 2)), "has no tensor '6.bias'"),
        (None, lambda: network()[:5], "the model has no tensor '5.bias'"),
        (None, lambda: network(tied=False), "'5.weight' is tied in only one"),
        (None, lambda: network().double(), "'0.weight' is float32 in .*, but float64 in the model"),
        (truncate(storage.WEIGHTS), network, "is damaged or no safetensors file"),
        (truncate(storage.WEIGHTS, 0.0), network, "is damaged or no safetensors file"),
        (truncate(storage.MANIFEST), network, "is not valid JSON"),
        (lambda d: (d / storage.WEIGHTS).unlink(), network, "is missing"),
        (lambda d: (d / storage.MANIFEST).unlink(), network, "holds no saved model"),
        (edit(lambda m: m.update(format="other")), network, "is not the manifest of a model saved by regrow"),
        (edit(lambda m: m.update(version=99)), network, "has format version 99, this regrow reads 1 and 2"),
        (edit(lambda m: m.update(tensors=[1])), network, "is damaged"),
        (edit(lambda m: m.update(tied={"5.weight": ["4.weight"]})), network, "is damaged"),
        (edit(lambda m: m["tensors"]["0.weight"].update(shape=[-1])), network, "is damaged"),
        (edit(lambda m: m["tensors"]["0.weight"].pop("shape")), network, "is damaged"),
        (edit(lambda m: m["tensors"]["0.weight"].update(encoding="dense")), network, "'0.weight' does not match"),
        (
            edit(lambda m: m["tensors"]["0.weight"].update(encoding="zip")),
            network,
            r"\.0\.weight\.encoding should be",
        ),
        (
            edit(lambda m: m.update(surprise=1)),
            network,
            "surprise does not belong there: restore it",
        ),
        (
            edit(lambda m: m["tensors"]["0.bias"].update(density=1.5)),
            network,
            r"\.density should be less",
        ),
        (edit(lambda m: m.pop("weights")), network, "its checksums are missing"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, damage, model, message):
    storage.save(sparsify(network()), tmp_path / "m")
    if damage is not None:
        damage(tmp_path / "m")
    target = model()
    before = bits(target)
    with pytest.raises(UserError, match=message) as error:
        storage.load(target, tmp_path / "m")
    assert "\n" not in str(error.value)
    assert bits(target) == before


def test_what_is_swapped_is_said(tmp_path):
    model = torch.nn.Linear(2, 2)
    for function in (storage.save, storage.load):
        with pytest.raises(UserError, match=r"model must be a torch\.nn\.Module.*the directory comes second"):
            function(str(tmp_path / "there"), model)
    assert not (tmp_path / "there").exists()
