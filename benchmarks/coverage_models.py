"""Further models of `coverage.py`: transformers from tiny configurations, and torchvision's detectors, segmenters and
video networks. All have random weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

_TOKENS = torch.arange(24).reshape(2, 12) % 90 + 3
_IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
_SOUND = torch.randn(2, 2000, generator=torch.Generator().manual_seed(0))
_MELS = torch.randn(2, 16, 64, generator=torch.Generator().manual_seed(0))

_SIZE = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_BERT = {**_SIZE, "intermediate_size": 64, "max_position_embeddings": 64}
_LLAMA = {**_BERT, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_BOTH = {
    "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "d_model": 32, "vocab_size": 99, **_ENDS,
}  # fmt: skip
_VIT = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4}  # fmt: skip
_WAVE = {**_BERT, "conv_dim": (16, 16), "conv_stride": (5, 4), "conv_kernel": (10, 4), "num_feat_extract_layers": 2,
         "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4, "classifier_proj_size": 16,
         "layerdrop": 0.0, "mask_time_prob": 0.0}  # fmt: skip
_SEGFORMER = {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [16, 32],
              "patch_sizes": [7, 3], "strides": [4, 2], "num_attention_heads": [2, 4], "mlp_ratios": [2, 2],
              "decoder_hidden_size": 32}  # fmt: skip

# name → (class without its ending, what it is for, options of the configuration, inputs in their order)
TRANSFORMERS: dict[str, tuple[str, str, Mapping[str, Any], tuple[tuple[str, Tensor], ...]]] = {}


def _text(name: str, kind: str, task: str, options: Mapping[str, Any], decoder: bool = False) -> None:
    inputs = (("input_ids", _TOKENS), ("decoder_input_ids", _TOKENS))[: 1 + decoder]
    TRANSFORMERS[name] = (kind, task, options, inputs)


for _name, _kind, _options in (
    ("gpt2", "GPT2", {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, **_ENDS}),
    ("llama", "Llama", _LLAMA), ("mistral", "Mistral", _LLAMA), ("qwen2", "Qwen2", _LLAMA),
    ("qwen3", "Qwen3", {**_LLAMA, "head_dim": 8}), ("gemma", "Gemma", {**_LLAMA, "head_dim": 8}),
    ("gemma2", "Gemma2", {**_LLAMA, "head_dim": 8}), ("phi3", "Phi3", _LLAMA),
    ("gpt_neox", "GPTNeoX", {**_BERT, **_ENDS}),
    ("opt", "OPT", {**_BERT, "ffn_dim": 64, "word_embed_proj_dim": 32, **_ENDS}),
    ("bloom", "Bloom", {"vocab_size": 99, "hidden_size": 32, "n_layer": 2, "n_head": 4, **_ENDS}),
    ("mixtral", "Mixtral", {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}),
    ("mamba", "Mamba", {"vocab_size": 99, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 2, **_ENDS}),
):  # fmt: skip
    _text(_name, _kind, "ForCausalLM", _options)
TRANSFORMERS["gpt2"] = ("GPT2", "LMHeadModel", *TRANSFORMERS["gpt2"][2:])
for _name, _kind, _options in (
    ("bert", "Bert", _BERT), ("albert", "Albert", {**_BERT, "embedding_size": 16}), ("roberta", "Roberta", _BERT),
    ("electra", "Electra", {**_BERT, "embedding_size": 16}), ("deberta_v2", "DebertaV2", _BERT),
    ("distilbert", "DistilBert", {"vocab_size": 99, "dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}),
):  # fmt: skip
    _text(_name, _kind, "ForSequenceClassification", _options)
_text("t5", "T5", "ForConditionalGeneration",
      {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}, True)  # fmt: skip
_text("bart", "Bart", "ForConditionalGeneration", {**_BOTH, "max_position_embeddings": 64}, True)
TRANSFORMERS["whisper"] = (
    "Whisper", "ForConditionalGeneration",
    {**_BOTH, "num_mel_bins": 16, "max_source_positions": 32, "max_target_positions": 64, "decoder_start_token_id": 1},
    (("input_features", _MELS), ("decoder_input_ids", _TOKENS)),
)  # fmt: skip
TRANSFORMERS["wav2vec2"] = ("Wav2Vec2", "ForSequenceClassification", _WAVE, (("input_values", _SOUND),))
for _name, _kind, _task, _options in (
    ("vit", "ViT", "ForImageClassification", _VIT),
    ("swin", "Swin", "ForImageClassification",
     {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4}),
    ("segformer", "Segformer", "ForSemanticSegmentation", _SEGFORMER),
    ("convnextv2", "ConvNextV2", "ForImageClassification",
     {"hidden_sizes": [16, 24], "depths": [1, 1], "num_stages": 2}),
):  # fmt: skip
    TRANSFORMERS[_name] = (_kind, _task, _options, (("pixel_values", _IMAGES),))


class Named(nn.Module):
    """A model that takes its arguments by name, called with them by position."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *args: Tensor) -> Any:
        return self.model(**dict(zip(self.names, args, strict=True)), return_dict=True)


def transformer(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A model of transformers with two layers, and an example of what it takes."""
    import transformers

    kind, task, options, inputs = TRANSFORMERS[name]
    config = getattr(transformers, f"{kind}Config")(**options)
    for key, value in vars(config).items():
        if "drop" in key and isinstance(value, float):
            setattr(config, key, 0.0)  # two widths would draw different numbers
    model = getattr(transformers, f"{kind}{task}")(config)
    return Named(model, [key for key, _ in inputs]), tuple(tensor for _, tensor in inputs)


# of torchvision, beside classification: name → edge of the images
FURTHER = {
    "deeplabv3_mobilenet_v3_large": 64, "deeplabv3_resnet50": 64, "fcn_resnet50": 64, "lraspp_mobilenet_v3_large": 64,
    "r3d_18": 32, "mc3_18": 32, "r2plus1d_18": 32, "s3d": 210, "mvit_v1_b": 64, "swin3d_t": 64,
    "ssd300_vgg16": 300, "ssdlite320_mobilenet_v3_large": 320, "retinanet_resnet50_fpn": 96, "fcos_resnet50_fpn": 96,
    "fasterrcnn_resnet50_fpn": 96, "fasterrcnn_mobilenet_v3_large_320_fpn": 96, "maskrcnn_resnet50_fpn": 96,
    "keypointrcnn_resnet50_fpn": 96, "raft_small": 128,
}  # fmt: skip


# where they are installed: detectors of ultralytics (AGPL, so in this benchmark alone) from their configurations,
# decoders of segmentation-models-pytorch on a ResNet-18; name → edge of the images
OTHERS = {
    "ultralytics": dict.fromkeys(["yolov5n", "yolov8n", "yolo11n", "yolo26n", "rtdetr-l"], 64),
    "segmentation_models_pytorch": {
        "Unet": 64, "UnetPlusPlus": 64, "MAnet": 64, "Linknet": 64, "FPN": 64, "PSPNet": 64, "DeepLabV3": 64,
        "DeepLabV3Plus": 64, "UPerNet": 64, "Segformer": 64, "PAN": 128,
    },
}  # fmt: skip


def ultralytics(name: str) -> nn.Module:
    """A detector of ultralytics; its class is a part of the name."""
    from ultralytics.nn import tasks

    kind = tasks.RTDETRDetectionModel if name.startswith("rtdetr") else tasks.DetectionModel
    return kind(f"{name}.yaml", verbose=False)


def decoder(name: str) -> nn.Module:
    """A segmenter of segmentation-models-pytorch."""
    import segmentation_models_pytorch

    return getattr(segmentation_models_pytorch, name)("resnet18", encoder_weights=None, classes=4)


class Boxes(nn.Module):
    """A detector that returns what its heads compute, before boxes are picked: those of R-CNNs at two places."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> Any:
        maps = self.detector.backbone(images)
        features = list(maps.values())
        if hasattr(self.detector, "head"):
            return self.detector.head(features)
        heads, many = self.detector.roi_heads, len(images)
        places = [images.new_tensor([[4.0, 8.0, 40.0, 60.0], [0.0, 0.0, 90.0, 90.0]])] * many
        found = [self.detector.rpn.head(features)]
        for kind in ("box", "mask", "keypoint"):
            if (pool := getattr(heads, f"{kind}_roi_pool", None)) is not None:
                inside = getattr(heads, f"{kind}_head")(pool(maps, places, [tuple(images.shape[2:])] * many))
                found.append(getattr(heads, f"{kind}_predictor")(inside))
        return found


def made_last(model: nn.Module) -> list[nn.Module]:
    """What torch-pruning's own script for torchvision leaves out of detectors and RAFT, and layers like those."""
    ends = ("cls_logits", "bbox_pred", "bbox_reg", "bbox_ctrness", "flow_head", "backbone.fpn", "roi_heads")
    rcnn = any(name.endswith("roi_heads") for name, _ in model.named_modules())
    ends = tuple(end for end in ends if rcnn or end != "backbone.fpn")
    return [
        m for name, m in model.named_modules() if name.endswith(ends) or type(m).__name__ in ("SSDHead", "SSDLiteHead")
    ]


class Flow(nn.Module):
    """RAFT with a grid of the precision of its images, which it makes in single precision."""

    def __init__(self, raft: nn.Module) -> None:
        super().__init__()
        self.raft = raft

    def forward(self, image: Tensor, other: Tensor) -> Any:
        from torchvision.models.optical_flow import raft

        make = raft.make_coords_grid
        with patch.object(raft, "make_coords_grid", lambda *size: make(*size).to(image.dtype)):
            return self.raft(image, other)


def _clips_of(edge: int) -> Any:
    """MViT made for clips of this edge, which its builder does not let choose."""
    from torchvision.models.video import mvit

    make = mvit._mvit
    return patch.object(mvit, "_mvit", lambda **options: make(**{**options, "spatial_size": (edge, edge)}))


def further(name: str, edge: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A detector, segmenter, video network or optical flow of torchvision, and an example of what it takes."""
    import torchvision

    options: dict[str, Any] = {"weights": None}
    backbones = ("rcnn", "ssd", "retinanet", "fcos", "deeplab", "fcn", "lraspp")
    if any(word in name for word in backbones):
        options["weights_backbone"] = None
    with _clips_of(edge):
        model = torchvision.models.get_model(name, **options)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, edge, edge, generator=generator)
    if "raft" in name:
        return Flow(model), (images, images.flip(0))
    if any(word in name for word in ("r3d", "mc3", "r2plus1d", "s3d", "mvit", "swin3d")):
        return model, (torch.randn(2, 3, 16, edge, edge, generator=generator),)
    if any(word in name for word in ("rcnn", "ssd", "retinanet", "fcos")):
        return Boxes(model), (images,)
    return model, (images,)
