"""Sensitivity regularization around any torch optimizer.

``SRFTAdamW`` is the fast form: one pass over the weights, no copy of them. This one lets a base optimizer take its step and corrects
what it did, which needs no knowledge of the base but a copy of the weights during the step where damping is on:

1. ``penalty`` or ``projection`` change the gradients that the base sees.
2. The base takes its step, from theta to theta + d.
3. Damping: theta + (1 - lambda_d m) d, weight decay included.
4. ``proximal``: the closed-form pull towards theta_0.

Around ``torch.optim.AdamW`` this is ``SRFTAdamW`` up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from srft.config import SRFTConfig
from srft.method.exact import exact_products
from srft.method.kernel import Damping, average_two_steps
from srft.method.optimizer import SRFTAdamW
from srft.method.prior import PriorSensitivity
from srft.method.shards import local

__all__ = ["SRFTAround"]


class SRFTAround(SRFTAdamW):
    """An optimizer whose steps are a base optimizer's, regularized by prior and transfer sensitivity.

    Use it in the base's place: it holds the parameter groups, with the base's other settings left to the base, and hands their learning
    rates on at every step. ``state_dict`` holds the base's, too. Statistics go in and out as for ``SRFTAdamW``.

    The transfer sensitivity is the base's ``exp_avg_sq`` where it keeps one with the ``betas`` of its group and a ``step`` (Adam and its
    relatives); otherwise it is a running mean of squared gradients kept here.

    Example:
        >>> model = nn.Linear(4, 2)
        >>> base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> optimizer = SRFTAround(base, model.named_parameters(), total_steps=100, srft=SRFTConfig(rank=0, damping_strength=0.5))
        >>> model(torch.ones(1, 4)).sum().backward()
        >>> optimizer.step()
    """

    def __init__(
        self,
        base: Optimizer,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        *,
        total_steps: int,
        srft: SRFTConfig,
        prior: PriorSensitivity | None = None,
        pretrained: Mapping[str, Tensor] | None = None,
        beta2: float = 0.999,
    ) -> None:
        """Set up parameters, prior and anchors.

        Args:
            base: any torch optimizer with a learning rate in its groups; let nothing else take its steps.
            named_parameters: names of its parameters; others are passed over.
            total_steps: length of the run, over which the prior hands over.
            srft: the method's settings.
            prior: keyed by these names, on their device; truncated to ``srft.rank``.
            pretrained: theta_0 by name; present values when None.
            beta2: decay of the running mean of squared gradients where the base keeps none.

        Raises:
            ValueError: a parameter of the base has no name; and whatever is one for ``SRFTAdamW``.
        """
        names: dict[Tensor, str] = {p: name for name, p in named_parameters}
        nameless = sum(p not in names for group in base.param_groups for p in group["params"])
        if nameless:
            raise ValueError(f"{nameless} parameters of the base optimizer have no name; pass the model's named_parameters()")
        if any(group.get("maximize") for group in base.param_groups):
            raise ValueError("the base optimizer maximizes; expected one that minimizes the loss that the prior pulls against: negate it")
        groups = []
        for group in base.param_groups:
            own = {"lr": float(group["lr"]), "betas": group.get("betas", (0.0, beta2))}
            extra = {"lr_multiplier": group["lr_multiplier"]} if "lr_multiplier" in group else {}
            groups.append({"params": [(names[p], p) for p in group["params"]], **own, **extra})
        self.base = base
        super().__init__(groups, total_steps=total_steps, weight_decay=0.0, srft=srft, prior=prior, pretrained=pretrained)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyrefly: ignore
        """Let the base take its step, regularized.

        Args:
            closure: computes the loss again and returns it, once; bases that call it several times (L-BFGS) are not served.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        settings, w = self.srft, self.prior_weight
        strength = settings.prior_strength * w
        gradients = self._gradients()
        if strength > 0 and settings.mode != "proximal":
            self._regularize(gradients, strength, w)
        before = {p: local(p).detach().clone() for p in gradients} if settings.damping_strength > 0 else {}
        for mine, theirs in zip(self.param_groups, self.base.param_groups, strict=True):
            theirs["lr"] = mine["lr"]
        self.base.step()
        for group in self.param_groups:
            for p in (p for p in group["params"] if p in gradients):
                self._measure(p, gradients[p], group["betas"][1])
                if p in before:
                    self._damp(p, before.pop(p), group["betas"][1], w)
        if strength > 0 and settings.mode == "proximal":
            self._term.pull_back({p: float(g["lr"]) * strength for g in self.param_groups for p in g["params"] if p in gradients})
        self.steps_taken += 1
        return loss

    @exact_products()
    def _regularize(self, gradients: Mapping[Tensor, Tensor], strength: float, w: float) -> None:
        penalty = self.srft.mode == "penalty"
        combinations = self._term.penalty(gradients, strength) if penalty else self._term.projection(gradients, w)
        for p, gradient in gradients.items():
            values = local(p).view(-1)
            for op in self._term.operations[p]:
                if op in combinations:
                    op.add(gradient, combinations[op], self._term.scratch)
                if op.remainder is not None:
                    g, theta = gradient[op.where], values[op.where]
                    for a, b in op.ranges():
                        if penalty:
                            op.add_remainder(g[a:b], theta[a:b], a, b, strength)
                        else:
                            op.shrink_by_remainder(g[a:b], a, b, w)

    def _measure(self, p: Tensor, gradient: Tensor, beta2: float) -> None:
        state, theirs = self.state[p], self.base.state.get(p, {})
        if "exp_avg_sq" in theirs and "step" in theirs:
            state["exp_avg_sq"], state["step"] = theirs["exp_avg_sq"], theirs["step"]
        else:
            if "exp_avg_sq" not in state:
                state["exp_avg_sq"], state["step"] = torch.zeros_like(p), torch.zeros((), dtype=torch.float32)
            state["step"] += 1
            local(state["exp_avg_sq"]).view(-1).mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        if self.srft.transfer == "two_step":
            for name in ("last_square", "two_step"):
                if name not in state:
                    state[name] = torch.zeros_like(p)
            average_two_steps(local(state["last_square"]).view(-1), local(state["two_step"]).view(-1), gradient)

    def _damp(self, p: Tensor, before: Tensor, beta2: float, w: float) -> None:
        state, damping = self._flat_state(p), Damping.of(self.srft, w)
        root = (1 - beta2 ** self.state[p]["step"].item()) ** 0.5
        now, old, two_step = local(p).view(-1), before.view(-1), self.srft.transfer == "two_step"
        for op in self._term.operations[p]:
            known, pulled, constant = damping.shares(w if op.has_prior else 0.0)
            for a, b in op.ranges():
                part = slice(op.where.start + a, op.where.start + b)
                seen = state["two_step"][part].sqrt() if two_step else state["exp_avg_sq"][part].sqrt().mul_(1 / root)
                factor = op.ranks.lookup(seen, self._term.scratch).mul_(-damping.span * pulled).add_(damping.most - damping.span * constant)
                if op.prior_ranks is not None:
                    factor.add_(op.prior_ranks[a:b], alpha=-damping.span * known / 255)
                # theta' = theta + factor d
                now[part].lerp_(old[part], factor.mul_(-damping.gain).add_(1).to(now.dtype))

    def state_dict(self) -> dict[str, Any]:
        """State of this optimizer, the base's under ``base``.

        Returns:
            For :meth:`load_state_dict`.
        """
        return {**super().state_dict(), "base": self.base.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where a run stopped.

        Args:
            state_dict: from :meth:`state_dict`, with the same base.

        Raises:
            ValueError: it holds no base, or was written with a prior of another rank.
        """
        if "base" not in state_dict:
            raise ValueError(
                f"optimizer state holds {', '.join(state_dict)} and no base; expected the state of an optimizer around another"
            )
        self.base.load_state_dict(state_dict["base"])
        super().load_state_dict({name: value for name, value in state_dict.items() if name != "base"})
