"""Where the tests' data sets are, and a module with data sets of the user's."""

import sys

import pytest


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """Data and decoded images are kept away from the user's own."""
    monkeypatch.setenv("REGROW_DATA", str(tmp_path / "root"))
    return tmp_path / "root"


@pytest.fixture
def my_data(tmp_path, monkeypatch):
    (tmp_path / "my_data.py").write_text(
        "import random, numpy, torch\n"
        "from torch.utils.data import Dataset, TensorDataset\n"
        "from regrow.data.named import in_memory\n"
        "class Noisy(Dataset):\n"
        "    classes = ['a', 'b']\n"
        "    def __init__(self, n): self.n = n\n"
        "    def __len__(self): return self.n\n"
        "    def __getitem__(self, i):\n"
        "        noise = torch.rand(1, 2, 2) + random.random() + numpy.random.rand()\n"
        "        return noise.float() + 10 * i, i % 2\n"
        "def pair(): return Noisy(20), Noisy(6)\n"
        "def triple(): return Noisy(20), Noisy(4), Noisy(6)\n"
        "def tensors(): return tuple(TensorDataset(torch.rand(12, 1, 2, 2), torch.arange(12) % 3) for _ in 'ab')\n"
        "def whole(settings):\n"
        "    images = torch.zeros(30, 1, 4, 4, dtype=torch.uint8)\n"
        "    return in_memory((images, torch.arange(30) % 3), (images, torch.arange(30) % 3), settings)\n"
        "def wrong(): return 3\n"
        "def flat(): return (TensorDataset(torch.rand(8, 5), torch.arange(8) % 2),) * 2\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("my_data", None)
