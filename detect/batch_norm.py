"""The batch of all processes together: normalisation over it, sums, and random draws for it.

torch's SyncBatchNorm needs GPUs; this one also works between CPU processes, over gloo.
Shapes: N images per process, C channels, h x w pixels.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import FunctionCtx

from synth.base.errors import UserError

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """As `nn.BatchNorm2d`, but training statistics cover every process's share of the batch.

    Gradients flow through them into every share. Each process must hold as many images as the
    others; `detect.training.loop` checks that. A single process takes torch's own path.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map [N, C, h, w] to the same shape and dtype; arithmetic is float32."""
        if not self.training or num_processes() == 1:
            return super().forward(input)
        x = input.float()
        mean = global_mean(x.mean((0, 2, 3)))
        centred = x - mean.view(1, -1, 1, 1)
        var = global_mean(centred.square().mean((0, 2, 3)))
        self.follow(mean.detach(), var.detach(), num_processes() * x[:, 0].numel())
        y = centred * (var + self.eps).rsqrt().view(1, -1, 1, 1)
        if self.affine:
            y = y * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return y.to(input.dtype)

    @torch.no_grad()
    def follow(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Move the running statistics as torch does: the variance is unbiased.

        A momentum of None is the mean over all batches so far.
        """
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(var * count / (count - 1), share)


def require_global_norms(model: nn.Module) -> None:
    """Raise UserError where several processes would each normalise by their own share of a batch.

    Modules in evaluation mode do not count.
    """
    if num_processes() == 1:
        return
    for name, module in model.named_modules():
        is_local = not isinstance(module, GlobalBatchNorm2d | nn.SyncBatchNorm)
        if isinstance(module, BATCH_NORMS) and module.training and is_local:
            raise UserError(
                f"{type(model).__name__}: {name} normalises over one process's share of a batch, "
                f"and {num_processes()} processes train; train with one process"
            )


class GlobalSum(Function):
    """The sum of a tensor over the processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: FunctionCtx, share: Tensor) -> Tensor:
        """Every process calls it together, with tensors of one shape."""
        total = share.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Every process's sum contains every share."""
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def global_mean(share: Tensor) -> Tensor:
    """The mean of a tensor over the processes, with its gradient; all must call it together."""
    total = GlobalSum.apply(share)
    assert isinstance(total, Tensor)
    return total / num_processes()


def num_processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def whole_batch(share: Tensor) -> Tensor:
    """Return the whole batch of which each process has a share [N, ...], with its gradient."""
    count = num_processes()
    if count == 1:
        return share
    slots = share.new_zeros(len(share), count, *share.shape[1:])
    slots[:, dist.get_rank()] = share
    whole = GlobalSum.apply(slots)
    assert isinstance(whole, Tensor)
    return whole.flatten(0, 1)


def uniform(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw from [0, 1) for this process's share of a batch, float32 [N, ...].

    The generator is the same in all processes: they draw for the whole batch, sample by sample.
    """
    count, rank = num_processes(), dist.get_rank() if num_processes() > 1 else 0
    return torch.rand(shape[0] * count, *shape[1:], generator=generator)[rank::count]
