"""One update of the weights: forward and backward in parts, precision, clipping, guards, the running mean of the weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from srft.config import OptimConfig, Precision
from srft.data.pairs import Batch
from srft.method.optimizer import SRFTAdamW
from srft.model.losses import tracking_loss
from srft.training.worker import HALF, accumulating

__all__ = ["LossScale", "RunningMean", "Updater", "forward", "learning_rate"]

_SKIPS_IN_A_ROW = 20


def learning_rate(optim: OptimConfig, step: int) -> float:
    """Linear warm-up to the peak, then what ``optim.decay`` says.

    Args:
        optim: peak rate, the batch size that it is meant for, warm-up share, decay and length.
        step: optimizer steps done.

    Returns:
        The rate of the next step.
    """
    peak = optim.lr * (optim.batch_size / optim.lr_batch if optim.lr_batch else 1.0)
    warmup = round(optim.warmup * optim.total_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    if optim.decay == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, optim.total_steps - warmup)))
    return peak * (0.1 if optim.decay == "step" and step >= optim.drop_epoch * optim.steps_per_epoch else 1.0)


@dataclass(kw_only=True)
class LossScale:
    """Keeps small gradients of 16-bit floats from vanishing: halves when a gradient overflows, doubles after many that did not."""

    scale: float = 2.0**16
    clean: int = 0
    """Steps since it was last changed."""
    skipped: int = 0
    """Steps skipped in a row."""

    def overflowed(self) -> None:
        """A step was skipped."""
        self.scale, self.clean, self.skipped = self.scale / 2, 0, self.skipped + 1

    def passed(self) -> None:
        """A step was taken."""
        self.clean, self.skipped = self.clean + 1, 0
        if self.clean == 2000:
            self.scale, self.clean = self.scale * 2, 0


class RunningMean:
    """Exponential running mean of the trainable weights, slower the more steps there were: decay at most (1 + t) / (10 + t)."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        """Begin with the weights as they are.

        Args:
            parameters: by name; DTensors stay DTensors.
            decay: 0 to 1.
        """
        self.parameters = dict(parameters)
        self.decay = decay
        self.values = {name: p.detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def begin_here(self) -> None:
        """Forget the past: the mean becomes the weights as they are."""
        for name, p in self.parameters.items():
            self.values[name].copy_(p.detach())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights of one step in.

        Args:
            step: optimizer steps done.
        """
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.values.values()), [p.detach() for p in self.parameters.values()], weight)


def forward(model: nn.Module, template: Tensor, search: Tensor, precision: Precision) -> Any:
    """What the network says, computed in a precision.

    Args:
        model: the network, or its wrapper.
        template: ``[B, C, h, w]``.
        search: ``[B, C, H, W]``.
        precision: of what autocast runs in fewer bits.

    Returns:
        Its output, float32.
    """
    with torch.autocast(template.device.type, HALF.get(precision), enabled=precision in HALF):
        output = model(template, search)
    return type(output)(*(part.float() for part in output)) if precision in HALF else output


class Updater:
    """Takes one step a batch: :meth:`gradients`, then :meth:`apply`."""

    def __init__(self, model: nn.Module, optimizer: SRFTAdamW, optim: OptimConfig) -> None:
        """Bind what never changes during a run.

        Args:
            model: what is called: the network, or its wrapper.
            optimizer: of its trainable parameters.
            optim: precision, accumulation, clipping and learning rates.
        """
        self.model, self.optimizer, self.optim = model, optimizer, optim
        self.scale = LossScale() if optim.precision == "fp16" else LossScale(scale=1.0)
        self._norm, self._overflow = torch.zeros(()), False
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def gradients(self, batch: Batch, step: int, where: str) -> dict[str, float]:
        """Forward and backward: afterwards parameters hold the gradient, which is the mean over all workers' samples.

        Args:
            batch: this worker's share.
            step: optimizer steps done.
            where: for error messages.

        Returns:
            Loss parts, and the gradient's norm before clipping; zeros, and that one step is ``skipped``, if :meth:`apply` will skip it.

        Raises:
            FloatingPointError: loss or gradient is not finite. In fp16 they may be, some times in a row: :meth:`apply` skips the step.
        """
        self.optimizer.zero_grad()
        parts = self._backward(batch)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None]) / self.scale.scale
        self._norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # pyrefly: ignore
        values = dict(zip([*parts, "grad_norm"], torch.stack([*parts.values(), self._norm]).tolist(), strict=True))
        # By the gradient, the mean over workers, so that all of them see one worker's failure and none waits for it.
        self._overflow = not math.isfinite(values["grad_norm"])
        tolerated = self._overflow and self.optim.precision == "fp16" and self.scale.skipped < _SKIPS_IN_A_ROW
        if not tolerated and not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
            raise FloatingPointError(self._what_is_wrong(values, step, where))
        return dict.fromkeys(values, 0.0) | {"skipped": 1.0} if self._overflow else values

    def apply(self, step: int) -> None:
        """Clip the gradients and let the optimizer take its step, which may change them in place.

        Args:
            step: optimizer steps done, which the learning rate follows from.
        """
        if self._overflow:
            self.scale.overflowed()
            self.optimizer.steps_taken += 1
            return
        if self.scale.scale != 1:
            torch._foreach_mul_([p.grad for p in self._parameters if p.grad is not None], 1 / self.scale.scale)
        if self.optim.grad_clip > 0:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self.optim.grad_clip, self._norm)
        rate = learning_rate(self.optim, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_multiplier", 1.0)
        self.optimizer.step()
        self.scale.passed()

    def _backward(self, batch: Batch) -> dict[str, Tensor]:
        count = self.optim.accumulate
        sums: dict[str, Tensor] = {}
        for i, (template, search, boxes) in enumerate(zip(*(tensor.chunk(count) for tensor in batch), strict=True)):
            with contextlib.nullcontext() if i + 1 == count else accumulating(self.model):
                parts = tracking_loss(forward(self.model, template, search, self.optim.precision), boxes)
                (parts["loss"] * (self.scale.scale / count)).backward()
            for name, value in parts.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach() / count
        return sums

    def _what_is_wrong(self, values: Mapping[str, float], step: int, where: str) -> str:
        names = [name for group in self.optimizer.param_groups for name in group["param_names"]]
        bad = [n for n, p in zip(names, self._parameters, strict=True) if p.grad is not None and not p.grad.isfinite().all()]
        named = f"; the gradient of {bad[0]} and {len(bad) - 1} more is not finite" if bad else ""
        return (
            f"{where}: loss and gradient norm are {values}{named}; stopped before the update. "
            f"Lower optim.lr (now {learning_rate(self.optim, step):.3g}) or check the data"
        )
