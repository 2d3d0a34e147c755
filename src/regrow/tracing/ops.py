"""The operations of torch that regrow knows, by family: FLOPs, latency and channels each say what a family means to
them. Beside it what those multiply, only add, or look up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

aten = torch.ops.aten
Shape = Sequence[int]

# Family → names, without underscores at either end, so that `relu_` and `_softmax` are found too. What has
# torch.Tag.pointwise and is used in no other way than the rest of them stands in none.
FAMILIES: dict[str, str] = {
    # what multiplies
    "matrix products": "mm addmm",
    "products": "bmm baddbmm mv addmv dot vdot",
    "grouped products": "grouped_mm",
    "convolutions": "convolution",
    "deformable convolutions": "deform_conv2d",
    # each entry for itself
    "pointwise without the tag": "hardswish fill zero copy bernoulli uniform normal",
    "slopes": "prelu prelu_kernel",
    "gates": "glu",
    "dropout": "native_dropout",
    # what makes tensors
    "like another": "zeros_like ones_like empty_like rand_like randn_like full_like",
    "new of a size": "new_empty new_zeros new_ones new_full",
    # what moves numbers
    "same memory": "detach alias",
    "new strides": "as_strided",
    "same": "clone to_copy lift_fresh lift_fresh_copy",
    "views": "view unsafe_view reshape_alias view_copy squeeze squeeze_copy unsqueeze",
    "orders of dimensions": "permute transpose t",
    "expansion": "expand",
    "cuts": "slice",
    "splits": "split split_copy unsafe_split split_with_sizes split_with_sizes_copy unsafe_split_with_sizes",
    "picks": "select unbind",
    "joins": "cat",
    "stacks": "stack",
    "moved entries": (
        "roll flip rot90 index index_select gather take repeat repeat_interleave tril triu diagonal unfold "
        "pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle constant_pad_nd reflection_pad1d "
        "reflection_pad2d replication_pad2d"
    ),
    "writes": "index_put index_put_impl",
    "writes along a dimension": ("index_add index_copy index_fill scatter scatter_add select_scatter slice_scatter"),
    "unpools": "max_unpool2d max_unpool3d",
    "folds": "col2im",
    "patches": "im2col",
    "complex views": "view_as_real view_as_complex",
    "fourier": "fft_r2c fft_c2r fft_c2c",
    "embeddings": "embedding",
    # what reduces or looks at whole slices
    "reductions": (
        "mean sum nansum prod max amax min amin aminmax argmax argmin all any count_nonzero norm linalg_vector_norm "
        "logsumexp std std_mean var var_mean median kthvalue topk sort cumsum cumprod softmax log_softmax safe_softmax"
    ),
    "batch norms": (
        "native_batch_norm native_batch_norm_legit native_batch_norm_legit_no_training cudnn_batch_norm "
        "batch_norm_no_update batch_norm_with_update"
    ),
    "layer norms": "native_layer_norm",
    "group norms": "native_group_norm",
    "weight norms": "weight_norm_interface",
    # what each channel does in space
    "max pools": "max_pool2d_with_indices mkldnn_max_pool2d",
    "adaptive pools": "adaptive_avg_pool2d",
    "pools": "max_pool3d_with_indices avg_pool2d avg_pool3d adaptive_avg_pool3d adaptive_max_pool2d",
    "interpolation": (
        "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_nearest_exact1d upsample_nearest_exact2d "
        "upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d upsample_bilinear2d_aa upsample_bicubic2d "
        "upsample_bicubic2d_aa upsample_trilinear3d"
    ),
    "samplers": "grid_sampler_2d roi_align roi_pool",
    # free, and no more is known of them
    "other work on entries": (
        "rrelu_with_noise addr complex polar heaviside fused_dropout nll_loss_forward nll_loss2d_forward mse_loss "
        "binary_cross_entropy smooth_l1_loss huber_loss"
    ),
    "creation": (
        "arange linspace logspace full zeros ones empty empty_strided empty_permuted new_empty_strided scalar_tensor "
        "eye tril_indices triu_indices rand randn randint randint_like randperm exponential random multinomial "
        "efficientzerotensor set resize"
    ),
    "other moves": (
        "reflection_pad3d replication_pad1d replication_pad3d reshape_copy expand_copy permute_copy t_copy "
        "transpose_copy diag_embed unfold_copy block_diag local_scalar_dense equal is_same_size chunk_cat "
        "assert_async assert_scalar foreach_copy "
        "scatter_reduce diagonal_scatter as_strided_scatter masked_select "
        "masked_scatter nonzero searchsorted bucketize embedding_renorm embedding_bag embedding_bag_forward_only "
        "unique unique2 unique_dim unique_consecutive bincount histc"
    ),
    "other work on slices": (
        "nanmedian mode trace cummax cummin logcumsumexp cummax_helper cummin_helper masked_softmax miopen_batch_norm "
        "renorm mkldnn_max_pool3d mkldnn_adaptive_avg_pool2d adaptive_max_pool3d fractional_max_pool2d "
        "fractional_max_pool3d"
    ),
}
_FAMILY = {name: family for family, names in FAMILIES.items() for name in names.split()}
# as in RigL's accounting, all others are free by convention, and with them whatever is pointwise or a view
_COSTLY = frozenset(
    [
        "matrix products", "products", "convolutions", "deformable convolutions", "samplers", "fourier",
        "grouped products", None,
    ]
)  # fmt: skip


# averages: where channels are normalised together, they are over those that there are
MEANS = frozenset(["mean", "var", "std", "var_mean", "std_mean"])


def name_of(func: Any) -> str:
    """The name of an operation without namespace and overload, ``"convolution"``."""
    return func._overloadpacket.__name__ if isinstance(func, torch._ops.OpOverload) else str(func)


def family_of(func: Any) -> str | None:
    """The family of an operation; None for those of other libraries than torch and torchvision, and unknown ones."""
    return _FAMILY.get(name_of(func).strip("_")) if _is_of_torch(func) else None


def is_pointwise(func: Any) -> bool:
    """Whether an operation of torch works on each entry for itself, by its tag."""
    return _is_of_torch(func) and torch.Tag.pointwise in func.tags


def _is_of_torch(func: Any) -> bool:
    return isinstance(func, torch._ops.OpOverload) and func.namespace in ("aten", "prim", "prims", "torchvision")


def is_free(func: Any) -> bool:
    """Whether an operation without a formula costs no FLOPs. What neither has one nor is free is reported by name."""
    if not isinstance(func, torch._ops.OpOverload) or func.namespace not in ("aten", "prim"):
        return False
    return is_pointwise(func) or func.is_view or family_of(func) not in _COSTLY


def _grouped(a: Shape, b: Shape, *_: Any, **__: Any) -> int:
    """Each group's part of one factor (or of both) times its own."""
    batch = a[0] if len(a) == len(b) == 3 else 1
    return 2 * batch * prod(a[-2:]) * b[-1]


# FLOPs of the operations that multiply: each takes the op's arguments, with shapes for tensors, and the result's shape
# as `out_val`; torch's registry lacks those that are written here
FORMULAS: dict[Any, Callable[..., int]] = {
    aten.mv: lambda a, x, **_: 2 * prod(a),
    aten.addmv: lambda _bias, a, x, **_: 2 * prod(a),
    aten.dot: lambda x, y, **_: 2 * prod(x),
    aten.vdot: lambda x, y, **_: 2 * prod(x),
    aten.addbmm: lambda _bias, a, b, **_: 2 * prod(a) * b[-1],
    aten._grouped_mm: _grouped,
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    **flop_registry,
}
# position of the operand that is only added: a bias is never the parameter that an op is attributed to
ADDED: dict[Any, int] = {
    aten.addmm: 0, aten.baddbmm: 0, aten.addmv: 0, aten.addbmm: 0,
    aten.convolution: 2, aten._convolution: 2, aten._scaled_mm: 4,
}  # fmt: skip
# position of the table of which these look up rows, and of the numbers of the rows
LOOKUPS: dict[Any, tuple[int, int]] = {
    aten.embedding: (0, 1), aten.embedding_bag: (0, 1), aten._embedding_bag: (0, 1),
    aten._embedding_bag_forward_only: (0, 1), aten.index: (0, 1), aten.index_select: (0, 2),
}  # fmt: skip
