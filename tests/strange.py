"""Small networks whose code does something with its channels that no rule can know."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEADS = 32, 4


class Strange(nn.Module):
    """A plain convolution, the layer `wide` whose 32 channels something is done with, and two layers behind."""

    into = WIDTH  # channels that come out of `special`

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.wide = nn.Conv2d(8, WIDTH, 3, padding=1)
        self.after = nn.Conv2d(self.into, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 4, 1)
        self.build()

    def build(self) -> None:
        """What the special part needs."""

    def special(self, x: Tensor) -> Tensor:
        """Of and to [batch, channels, height, width]."""
        raise NotImplementedError

    def end(self, x: Tensor) -> object:
        return x

    def forward(self, x: Tensor) -> object:
        x = self.special(torch.relu(self.wide(torch.relu(self.first(x)))))
        return self.end(self.last(torch.relu(self.after(x))))


NETWORKS: dict[str, type[Strange]] = {}
FOLLOWED: set[str] = set()  # those whose 32 channels can go all the same
DENSE: set[str] = set()  # those whose cannot


def network(followed: bool | None, into: int = WIDTH):
    """Registers a function of (module, x) as a network."""

    def register(special, build=None):
        name = special.__name__
        body = {"special": special, "into": into} | ({} if build is None else {"build": build})
        NETWORKS[name] = type(name, (Strange,), body)
        if followed is not None:
            (FOLLOWED if followed else DENSE).add(name)
        return special

    return register


def built(followed: bool | None, into: int = WIDTH, **attributes: object):
    """The same, with attributes of the module."""

    def build(self):
        for name, value in attributes.items():
            setattr(self, name, value)

    return lambda special: network(followed, into)(special, build)


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def image(y: Tensor, like: Tensor) -> Tensor:
    return y.transpose(1, 2).reshape(like.shape[0], -1, *like.shape[2:])


@built(True, heads_of_mine=HEADS)
def heads_under_another_name(self, x):
    y = tokens(x)
    q = y.view(y.shape[0], y.shape[1], self.heads_of_mine, -1).transpose(1, 2)
    return image(F.scaled_dot_product_attention(q, q, q).transpose(1, 2).flatten(2), x)


@network(False)
def heads_as_a_number(self, x):
    y = tokens(x)
    q = y.view(y.shape[0], y.shape[1], 4, -1).transpose(1, 2)
    return image(F.scaled_dot_product_attention(q, q, q).transpose(1, 2).flatten(2), x)


@built(True, parts=HEADS)
def heads_in_the_batch(self, x):
    q = x.reshape(x.shape[0] * self.parts, -1, x.shape[2] * x.shape[3])
    a = (q.transpose(1, 2) @ q / 3).softmax(-1)
    return (q @ a).reshape(x.shape[0], -1, *x.shape[2:])


@network(False)
def heads_in_the_batch_as_a_number(self, x):
    q = x.reshape(x.shape[0] * 4, -1, x.shape[2] * x.shape[3])
    a = (q.transpose(1, 2) @ q / 3).softmax(-1)
    return (q @ a).reshape(x.shape[0], -1, *x.shape[2:])


@network(False)
def functional_group_norm(self, x):
    return F.group_norm(x, 4)


@network(False)
def group_norm_by_hand(self, x):
    y = x.reshape(x.shape[0], 4, -1)
    return ((y - y.mean(-1, keepdim=True)) / (y.std(-1, keepdim=True) + 1e-3)).reshape(x.shape)


@network(False)
def layer_norm_by_hand(self, x):
    return (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-3).sqrt()


@network(False)
def rms_norm_by_sum(self, x):
    return x * (x.square().sum(1, keepdim=True) / x.shape[1] + 1e-3).rsqrt()


@network(None)
def unit_length(self, x):
    return F.normalize(x, dim=1)


@network(False)
def scaled_by_the_width(self, x):
    return x * x.shape[1] ** -0.5


@network(False)
def mean_by_hand(self, x):
    return x + x.sum(1, keepdim=True) / x.shape[1]


@network(True)
def sum_over_a_fixed_number(self, x):
    return x * (x.sum((2, 3), keepdim=True) / 64).sigmoid()


@network(False)
def local_response_norm(self, x):
    return F.local_response_norm(x, 5)


@network(False)
def softmax_over_channels(self, x):
    return x * x.softmax(1)


@network(False)
def strongest_channels(self, x):
    return x * (x.mean((2, 3), keepdim=True) >= x.mean((2, 3), keepdim=True).topk(8, 1).values[:, -1:])


@network(False)
def running_sum(self, x):
    return x.cumsum(1)


@network(False, into=16)
def first_half_as_a_number(self, x):
    return x[:, :16] * x[:, 16:]


@network(None, into=16)
def first_half_of_the_width(self, x):
    half = x.shape[1] // 2
    return x[:, :half] * x[:, half:]


@network(True, into=8)
def first_quarter(self, x):
    return x[:, : x.shape[1] // 4]


@built(True, into=16, lanes=16)
def split_by_an_attribute(self, x):
    a, b = torch.split(x, self.lanes, 1)
    return a * b.sigmoid()


@built(True, into=24, small=8, large=24)
def split_unevenly_by_attributes(self, x):
    a, b = torch.split(x, [self.small, self.large], 1)
    return b * a.square().sum(1, keepdim=True).sigmoid()


@network(False, into=24)
def split_unevenly_by_numbers(self, x):
    return torch.split(x, [8, 24], 1)[1]


@network(None)
def shuffled(self, x):
    return x.view(x.shape[0], 4, -1, *x.shape[2:]).transpose(1, 2).reshape(x.shape)


@network(False)
def einsum_over_heads(self, x):
    y = x.reshape(x.shape[0], 4, -1, *x.shape[2:])
    return torch.einsum("bhdxy,bhexy->bhdxy", y, y).reshape(x.shape)


@network(False)
def weighted_by_position(self, x):
    return x * torch.arange(x.shape[1], dtype=x.dtype).view(1, -1, 1, 1)


@network(False)
def weighted_by_fixed_positions(self, x):
    return x * torch.linspace(0, 1, 32, dtype=x.dtype).view(1, -1, 1, 1)


@network(False)
def through_numpy(self, x):
    return torch.from_numpy(x.detach().numpy() * 2)


@network(False)
def one_by_one(self, x):
    return torch.stack([x[:, i] * (i + 1) for i in range(32)], 1)


@network(None)
def every_channel(self, x):
    return torch.stack([one * 2 for one in x.unbind(1)], 1)


@network(False)
def noise_in_training(self, x):
    return x + 0.1 * torch.randn(x.shape[0], 32, 1, 1, dtype=x.dtype) if self.training else x


@network(None)
def dropped_channels(self, x):
    return F.dropout2d(x, 0.5, self.training)


@network(False)
def mixed_in_training(self, x):
    return x.flip(1) * x.shape[1] ** -0.5 if self.training else x


@network(False)
def against_the_order(self, x):
    return x + x.cumprod(1)


@network(True, into=8)
def shuffled_pixels(self, x):
    return F.pixel_shuffle(x, 2)


@network(None)
def functional_grouped_convolution(self, x):
    return F.conv2d(x, self.kernel, padding=1, groups=4)


def _kernel(self):
    self.kernel = nn.Parameter(torch.randn(WIDTH, 8, 3, 3, generator=torch.Generator().manual_seed(1)) * 0.2)


NETWORKS["functional_grouped_convolution"].build = _kernel


class Features:
    """An output that is no container."""

    __slots__ = ("deep", "result")

    def __init__(self, result: Tensor, deep: Tensor) -> None:
        self.result, self.deep = result, [{"features": (deep,)}]


@network(False)
def features_in_an_object(self, x):
    self.seen = x
    return x


NETWORKS["features_in_an_object"].end = lambda self, x: Features(x, self.seen)


@network(False)
def features_in_training(self, x):
    self.seen = x
    return x


NETWORKS["features_in_training"].end = lambda self, x: (x, self.seen) if self.training else x
