"""Gradients averaged over processes."""

from collections.abc import Iterator, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn

BUCKET_SIZE = 1 << 25
"""Numbers that are averaged at once: 128 MiB of float32."""


@torch.no_grad()
def average_gradients(accelerator: Accelerator, parameters: Sequence[nn.Parameter]) -> None:
    """Each gradient becomes its mean over the processes; nothing to do for a single one.

    All processes average the same parameters in the same order, whether these have a gradient or
    not: one that left any out would wait for the others forever. Where a process has none it counts
    as 0; a parameter that has none anywhere keeps none, as on a single process.
    """
    if accelerator.num_processes == 1:
        return
    for bucket in buckets(parameters):
        has_one = torch.tensor([p.grad is not None for p in bucket], device=bucket[0].device)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
        flat = torch.cat([has_one.to(bucket[0].dtype), *(g.flatten() for g in gradients)])
        mean = accelerator.reduce(flat, reduction="mean")
        assert isinstance(mean, Tensor)
        shares = mean[len(bucket) :].split([g.numel() for g in gradients])
        found = mean[: len(bucket)].tolist()
        for p, gradient, share, share_with in zip(bucket, gradients, shares, found, strict=True):
            if share_with:
                p.grad = gradient.copy_(share.view(gradient.shape))


def buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Cut parameters into runs of one type and of about BUCKET_SIZE numbers at most."""
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        size = sum(p.numel() for p in bucket) + parameter.numel()
        if bucket and (size > BUCKET_SIZE or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket
