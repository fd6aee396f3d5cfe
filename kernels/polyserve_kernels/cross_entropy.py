"""`linear_cross_entropy` out of two passes over the vocabulary, which each backend has its own of.

    loss      of a row with target y: lse - logit[y] + z_loss lse^2; 0 where y is ignore_index, inf where no id is y
    gradient  of logit j: grad (softmax[j] - [j = y]) + grad 2 z_loss lse softmax[j], with softmax = exp(logit - lse);
              0 in rows whose loss is 0 or inf for y's sake
Sharing   Of a vocabulary shared by the processes of a group, in order of rank, a pass sees the part of its own process:
          log-sum-exps and target logits of all parts are gathered and folded in order of rank, and what each part adds
          to the gradient of hidden states is summed by all_reduce, in float32. Targets count from a part's first id.
Shapes    T tokens   C channels   V ids of this process   hidden [T, C]   weight [V, C]   targets [T]
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, all_gather_single, all_reduce

from polyserve_kernels.autograd import differentiable
from polyserve_kernels.types import LossOptions


@dataclass(frozen=True, slots=True)
class RowSlopes:
    """What the gradients of a row's logits are made of: grad (softmax - [id = target]) + grad_lse softmax."""

    lse: Tensor  # [T] float32
    grad: Tensor  # [T] float32, of the cross-entropy
    grad_lse: Tensor  # [T] float32, what the z-loss adds to that of the log-sum-exp

    def of(self, rows: slice) -> "RowSlopes":
        return RowSlopes(self.lse[rows], self.grad[rows], self.grad_lse[rows])


# (hidden, weight, targets, soft_cap) -> log-sum-exp [T] and the target's logit [T], -inf where the part lacks the id
ForwardPass = Callable[[Tensor, Tensor, Tensor, float | None], tuple[Tensor, Tensor]]
# (hidden, weight, targets, slopes, soft_cap, needed) -> gradients of hidden, float32, and of weight, in its grad_dtype;
# None where not needed
BackwardPass = Callable[
    [Tensor, Tensor, Tensor, RowSlopes, float | None, Sequence[bool]], tuple[Tensor | None, Tensor | None]
]
LinearCrossEntropy = Callable[[Tensor, Tensor, Tensor, LossOptions], Tensor]


def linear_cross_entropy_of(forward: ForwardPass, backward: BackwardPass) -> LinearCrossEntropy:
    """The operation whose passes over a part of the vocabulary are these."""
    passes = _Passes(forward, backward)
    operation = differentiable(passes.losses, passes.gradients, save=lambda args, results: (*args, results[1]))

    def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, options: LossOptions) -> Tensor:
        losses: Tensor = operation(hidden, weight, targets, options=options)[0]
        return losses

    return linear_cross_entropy


@dataclass(frozen=True, slots=True)
class _Passes:
    forward: ForwardPass
    backward: BackwardPass

    def losses(self, hidden: Tensor, weight: Tensor, targets: Tensor, *, options: LossOptions) -> tuple[Tensor, Tensor]:
        """The loss and the log-sum-exp of each row."""
        group = options.group
        lse, logit = self.forward(hidden, weight, _in_part(targets, weight, group), options.soft_cap)
        if group is not None:
            lse, logit = _fold(lse, logit, group)
        loss = lse - logit
        if options.z_loss:
            loss = loss + options.z_loss * lse.square()
        return loss.masked_fill(targets == options.ignore_index, 0.0), lse

    def gradients(
        self,
        saved: tuple[Tensor, Tensor, Tensor, Tensor],
        grads: Sequence[Tensor | None],
        needed: Sequence[bool],
        *,
        options: LossOptions,
    ) -> tuple[Tensor | None, Tensor | None, None]:
        hidden, weight, targets, lse = saved
        grad, group = grads[0], options.group
        if grad is None:
            return None, None, None
        vocab_size = len(weight) * (1 if group is None else group.size())
        counts = (targets != options.ignore_index) & (targets >= 0) & (targets < vocab_size)
        grad = grad.where(counts, 0.0)
        slopes = RowSlopes(lse, grad, grad * (2 * options.z_loss * lse))
        part = _in_part(targets, weight, group)
        d_hidden, d_weight = self.backward(hidden, weight, part, slopes, options.soft_cap, needed[:2])
        if d_hidden is not None:
            if group is not None:
                all_reduce(d_hidden, group=group)
            d_hidden = d_hidden.to(hidden.dtype)
        return d_hidden, d_weight, None


def grad_dtype_of(weight: Tensor) -> torch.dtype:
    """The dtype that a weight's gradient is wanted in: its own, unless its grad_dtype names another."""
    wanted = weight.grad_dtype if weight.is_leaf else None
    return wanted or weight.dtype


def chunks(size: int, step: int) -> Iterator[slice]:
    """Slices of at most `step` that make up `size`, in ascending order."""
    return (slice(start, min(size, start + step)) for start in range(0, size, step))


def _in_part(targets: Tensor, weight: Tensor, group: ProcessGroup | None) -> Tensor:
    """Targets counted from the first id of this process's part."""
    return targets if group is None else targets - group.rank() * len(weight)


def _fold(lse: Tensor, logit: Tensor, group: ProcessGroup) -> tuple[Tensor, Tensor]:
    """The whole vocabulary's log-sum-exp and target logit [T], of those of each process's part."""
    mine = torch.stack((lse, logit))
    parts = mine.new_empty(group.size() * 2, len(lse))
    all_gather_single(parts, mine, group=group)
    parts = parts.view(-1, 2, len(lse))
    m = parts[:, 0].amax(0)
    total = torch.zeros_like(m)
    for part in parts[:, 0]:  # in order of rank
        total = total + torch.exp(part - m)
    return m + torch.log(total), parts[:, 1].amax(0)
