"""What is known of torch's ops beside the formulas of ``torch.utils.flop_counter``: what they multiply, only add, look
up, or do for free."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

aten = torch.ops.aten
Shape = Sequence[int]

# Ops without a formula that cost nothing by convention, as in RigL's accounting: what has torch.Tag.pointwise, every
# view, and the names below (underscores at either end are dropped, so `relu_` and `_softmax` are found too).
# Anything else is reported by name in `ModelFlops.uncounted`.
FREE_BY_KIND: dict[str, str] = {
    "pointwise without the tag": "hardswish prelu prelu_kernel glu rrelu_with_noise addr complex polar heaviside",
    "creation": (
        "arange linspace logspace full full_like new_full zeros zeros_like new_zeros ones ones_like new_ones empty "
        "empty_like empty_strided empty_permuted new_empty new_empty_strided scalar_tensor eye tril_indices "
        "triu_indices rand rand_like randn randn_like randint randint_like randperm bernoulli uniform normal "
        "exponential random multinomial efficientzerotensor zero fill set resize"
    ),
    "copies and reshapes": (
        "copy to_copy clone contiguous lift_fresh lift_fresh_copy detach alias reshape reshape_copy unsafe_view "
        "view_copy expand_copy permute_copy t_copy transpose_copy cat stack repeat repeat_interleave tile roll "
        "flip rot90 tril triu diag_embed unfold_copy im2col col2im pixel_shuffle pixel_unshuffle channel_shuffle "
        "split split_with_sizes split_with_sizes_copy unsafe_split chunk unbind block_diag local_scalar_dense "
        "equal is_same_size meshgrid chunk_cat assert_async assert_scalar foreach_copy as_strided transpose t "
        "squeeze unsqueeze swapaxes swapdims"
    ),
    "indexing": (
        "index index_select index_put index_put_impl index_add index_copy index_fill gather scatter scatter_add "
        "scatter_reduce select_scatter slice_scatter diagonal_scatter as_strided_scatter masked_select "
        "masked_scatter take nonzero where searchsorted bucketize one_hot embedding embedding_renorm embedding_bag "
        "embedding_bag_forward_only unique unique2 unique_dim unique_consecutive bincount histc"
    ),
    "reductions, scans and orders": (
        "sum nansum mean prod max min amax amin aminmax argmax argmin all any count_nonzero norm "
        "linalg_vector_norm logsumexp std std_mean var var_mean var_mean_correction cumsum cumprod cummax cummin "
        "logcumsumexp cummax_helper cummin_helper topk sort argsort kthvalue median nanmedian mode trace"
    ),
    "softmax and norms": (
        "softmax log_softmax safe_softmax masked_softmax native_layer_norm native_group_norm native_batch_norm "
        "native_batch_norm_legit native_batch_norm_legit_no_training batch_norm_no_update batch_norm_with_update "
        "batch_norm_impl_index cudnn_batch_norm miopen_batch_norm fused_rms_norm rms_norm renorm "
        "weight_norm_interface"
    ),
    "pooling": (
        "max_pool2d_with_indices max_pool3d_with_indices mkldnn_max_pool2d mkldnn_max_pool3d avg_pool2d avg_pool3d "
        "adaptive_avg_pool2d adaptive_avg_pool3d mkldnn_adaptive_avg_pool2d adaptive_max_pool2d "
        "adaptive_max_pool3d fractional_max_pool2d fractional_max_pool3d max_unpool2d max_unpool3d"
    ),
    "padding": (
        "constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d "
        "replication_pad3d"
    ),
    "dropout": "dropout native_dropout fused_dropout feature_dropout alpha_dropout",
    "interpolation": (
        "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_nearest_exact1d "
        "upsample_nearest_exact2d upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d "
        "upsample_trilinear3d upsample_bicubic2d upsample_bilinear2d_aa upsample_bicubic2d_aa"
    ),
    "losses": "nll_loss_forward nll_loss2d_forward mse_loss binary_cross_entropy smooth_l1_loss huber_loss",
}
FREE: frozenset[str] = frozenset(name for names in FREE_BY_KIND.values() for name in names.split())


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


def is_free(func: Any) -> bool:
    """Whether an op without a formula costs nothing."""
    if not isinstance(func, torch._ops.OpOverload):
        return False
    if func.namespace not in ("aten", "prim"):
        return False
    return torch.Tag.pointwise in func.tags or func.is_view or func._overloadpacket.__name__.strip("_") in FREE
