"""The same detector, faster: weights laid out once for scoring rather than anew for every image.

oneDNN, torch's engine on CPUs, brings a convolution's weights into its own layout at every call.
For the deep layers of a large network that takes longer than the convolution (1024 channels on 8x8
pixels: five times). Packed weights are in that layout already; the arithmetic is the same.
Shapes: N images, C channels, h x w pixels.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from detect.detector import Detector, Scores
from detect.methods.realnet.model import ChannelSelection
from detect.methods.realnet.reconstruction import SelfAttention
from detect.methods.realnet.rrs import RRS
from synth.base.device import fastest_precision
from synth.base.options import Precision

LONGEST_ATTENTION = 2048  # pixels; the weights of all pairs of more would take too much memory


def packed(detector: Detector, precision: Precision = "fp32") -> Detector:
    """Return a copy of a detector that scores faster, in evaluation mode, on the same device.

    precision: of convolutions and attention; "auto" takes the faster on this device. Norms,
    residuals, their selection and the scores are float32 either way. fp32 differs from the
    detector itself by rounding alone. Norms share their tensors with the detector, convolutions
    are a snapshot: pack after training. A packed detector cannot be trained or saved.
    """
    device = next((p.device for p in detector.parameters()), torch.device("cpu"))
    chosen = fastest_precision(device) if precision == "auto" else precision
    dtype = torch.bfloat16 if chosen == "bf16" else torch.float32
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        return cast(Detector, _twin(detector, dtype)).eval()
    return Unpacked(detector, dtype).eval()


class Unpacked(Detector):
    """A detector in mixed precision, where convolutions cannot be packed."""

    def __init__(self, detector: Detector, dtype: torch.dtype) -> None:
        super().__init__()
        self.detector, self.dtype = detector, dtype

    def forward(self, images: Tensor) -> Scores:
        """Score images as `Detector.predict`.

        Without TF32, which is torch's default for a GPU's convolutions: a threshold holds for
        other devices and exported files, too.
        """
        low = self.dtype != torch.float32
        with (
            torch.autocast(images.device.type, self.dtype, enabled=low),
            torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
        ):
            return self.detector(images)


def _packed(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return the packed kind of a module that has one, else a twin with packed parts.

    What multiplies and has no packed kind stays in float32, whatever comes before it.
    """
    make = PACKED.get(type(module))
    if make is not None and _fits(module):
        return make(module, dtype)
    twin = _twin(module, dtype)
    if isinstance(module, _ConvNd | nn.Linear) and dtype != torch.float32:
        twin._forward_pre_hooks = OrderedDict()
        twin.register_forward_pre_hook(lambda _, inputs: tuple(x.float() for x in inputs))
    return twin


def _twin(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a module of the same kind and tensors whose parts are packed."""
    twin = copy.copy(module)
    twin._modules = {
        name: None if part is None else _packed(part, dtype)
        for name, part in module._modules.items()
    }
    return twin


def _fits(module: nn.Module) -> bool:
    match module:
        case nn.ConvTranspose2d():
            shape = (module.kernel_size, module.stride, module.padding, module.output_padding)
            plain = shape == ((4, 4), (2, 2), (1, 1), (0, 0)) and module.dilation == (1, 1)
            return plain and module.groups == 1
        case nn.Conv2d():
            return module.padding_mode == "zeros" and not isinstance(module.padding, str)
        case _:
            return True


# --- the parts ---------------------------------------------------------------------------------


class Weights:
    """A convolution's weights, packed when the first images come: the layout depends on their size.

    Images of another size are packed for anew.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
        padding: tuple[int, ...] = (0, 0),
        stride: tuple[int, ...] = (1, 1),
        dilation: tuple[int, ...] = (1, 1),
        groups: int = 1,
    ) -> None:
        self.weight, self.dtype = weight.detach(), dtype
        self.bias = None if bias is None else bias.detach().to(dtype)
        self.shape = (padding, stride, dilation, groups)
        self.size = torch.Size()
        self.laid_out = self.weight

    def __call__(self, x: Tensor) -> Tensor:
        """Convolve [N, C_in, h, w], whatever its precision and layout."""
        x = x.to(self.dtype).contiguous(memory_format=torch.channels_last)
        if self.size != x.shape[2:]:
            self._pack(x.shape)
        convolve = torch.ops.mkldnn._convolution_pointwise
        return convolve(x, self.laid_out, self.bias, *self.shape, "none", [], "")

    def _pack(self, size: torch.Size) -> None:
        weight = self.weight.to(self.dtype).contiguous(memory_format=torch.channels_last)
        reorder = torch._C._nn.mkldnn_reorder_conv2d_weight  # pyright: ignore (no stubs)
        self.laid_out, self.size = reorder(weight.to_mkldnn(), *self.shape, size), size[2:]


class PackedConv2d(nn.Module):
    """A convolution; whatever comes in, it computes in its own precision, channels last."""

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        assert not isinstance(conv.padding, str), "see _fits"
        self.weights = Weights(
            conv.weight, conv.bias, dtype, conv.padding, conv.stride, conv.dilation, conv.groups
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C_in, h, w] to [N, C_out, h', w']."""
        return self.weights(x)


class PackedSame(PackedConv2d):
    """A convolution padded as TensorFlow's: EfficientNet-Lite's of stride 2."""

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__(conv, dtype)
        self.padded = partial(
            pad_same,
            kernel_size=list(conv.kernel_size),
            stride=list(conv.stride),
            dilation=list(conv.dilation),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C_in, h, w] to [N, C_out, h', w'], h' = h / stride, rounded up."""
        return self.weights(self.padded(x))


class PackedUpsampling(nn.Module):
    """A transposed 4 x 4 convolution of stride 2 as four 2 x 2 convolutions, one per phase.

    Output pixel 2i + a is x[i - 1] w[3] + x[i] w[1] for a = 0, x[i] w[2] + x[i + 1] w[0] for a = 1.
    oneDNN has no packed transposed convolution for channels last; this takes as many products.
    """

    TAPS = ((3, 1), (2, 0))

    def __init__(self, conv: nn.ConvTranspose2d, dtype: torch.dtype) -> None:
        super().__init__()
        weight = conv.weight.transpose(0, 1)  # [C_out, C_in, 4, 4]
        self.phases = [
            (a, b, Weights(weight[:, :, rows][:, :, :, columns], conv.bias, dtype))
            for a, rows in enumerate(self.TAPS)
            for b, columns in enumerate(self.TAPS)
        ]

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C_in, h, w] to [N, C_out, 2h, 2w]."""
        _, _, h, w = x.shape
        x = F.pad(x, (1, 1, 1, 1))
        parts = [phase(x[:, :, a : a + h + 1, b : b + w + 1]) for a, b, phase in self.phases]
        N, C = parts[0].shape[:2]
        y = parts[0].new_empty(N, 2 * h, 2 * w, C)
        for (a, b, _), part in zip(self.phases, parts, strict=True):
            y[:, a::2, b::2] = part.permute(0, 2, 3, 1)
        return y.permute(0, 3, 1, 2)  # channels last


class PackedAttention(nn.Module):
    """Self-attention with the weights of all pairs in memory: faster in bf16 than torch's own."""

    def __init__(self, attention: SelfAttention, dtype: torch.dtype) -> None:
        super().__init__()
        self.attention = cast(SelfAttention, _twin(attention, dtype))
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, h, w] to the same shape."""
        N, C, h, w = x.shape
        if self.dtype == torch.float32 or h * w > LONGEST_ATTENTION:
            return self.attention(x)
        heads = self.attention.num_heads
        d = C // heads
        qkv = self.attention.qkv(self.attention.norm(x)).permute(0, 2, 3, 1)
        q, k, v = qkv.reshape(N, h * w, 3, heads, d).permute(2, 0, 3, 1, 4).flatten(1, 2)
        weights = torch.baddbmm(q.new_zeros(()), q, k.transpose(1, 2), beta=0, alpha=d**-0.5)
        y = torch.bmm(weights.softmax(dim=2), v)  # [N heads, h w, d]
        y = y.view(N, heads, h, w, d).permute(0, 1, 4, 2, 3).reshape(N, C, h, w)
        return x + self.attention.out(y)


class PackedSelection(nn.Module):
    """The channels that AFS kept, channels last."""

    def __init__(self, selection: ChannelSelection, dtype: torch.dtype) -> None:
        super().__init__()
        self.selection = selection

    def forward(self, features: Tensor) -> Tensor:
        """Map [N, C, h, w] to [N, m, h, w]."""
        index = self.selection.index
        if len(index) == features.shape[1]:  # ascending and each once: all of them
            return self.selection.scaled(features)
        return self.selection(features).contiguous(memory_format=torch.channels_last)


class PackedRRS(nn.Module):
    """RRS that gathers the selected residuals channels last: a third of the time of whole rows."""

    def __init__(self, rrs: RRS, dtype: torch.dtype) -> None:
        super().__init__()
        self.rrs = rrs

    def forward(self, residual: Tensor) -> Tensor:
        """Map [N, C, h, w] to [N, r, h, w]."""
        N, _, h, w = residual.shape
        index = self.rrs.select(residual)[:, None, None].expand(N, h, w, -1)  # [N, h, w, r]
        return residual.permute(0, 2, 3, 1).gather(3, index).permute(0, 3, 1, 2)


PACKED: dict[type[nn.Module], Callable[[Any, torch.dtype], nn.Module]] = {
    nn.Conv2d: PackedConv2d,
    Conv2dSame: PackedSame,
    nn.ConvTranspose2d: PackedUpsampling,
    SelfAttention: PackedAttention,
    ChannelSelection: PackedSelection,
    RRS: PackedRRS,
}
"""What takes a part's place."""
