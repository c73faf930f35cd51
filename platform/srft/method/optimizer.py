"""AdamW with sensitivity regularization: one regularized step.

Symbols: g gradient, w(t) prior weight, V and lambda the prior's eigenpairs of an operation, theta_0 the pre-trained values, c = V (theta -
theta_0) the displacement in the prior's subspace, L = lambda / scale the dimensionless eigenvalues.

1. Tangent-space term. ``penalty``: g += lambda_p w V^T L c. ``projection``: g -= w V^T D V g with D = lambda / (lambda + mu / lambda_p) and
   mu = residual / (n - K), the mean eigenvalue left out. ``proximal``: after the step, theta -= V^T (s / (1 + s)) c with
   s = lr lambda_p w L, the closed-form proximal step of the same quadratic, which no strength makes unstable.
2. AdamW direction u; its moments see the regularized gradient.
3. Damping: theta -= lr (1 - lambda_d m) (u + weight_decay theta), m = m_min + (m_max - m_min) (w rank(s_prior) + (1 - w) rank(s_trans)).

theta_0 enters only as ``V theta_0``, K numbers per operation, so that no copy of the weights is kept. Ranks are those of magnitudes (roots
of running mean squares, corrected for Adam's start), which have the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from srft.config import SRFTConfig
from srft.method.groups import Group, groups_of
from srft.method.prior import GroupPrior, PriorSensitivity
from srft.method.schedule import AdaptiveWeight, prior_weight
from srft.method.sketch import TensorRanks, chunks, histogram_of, tensor_ranks
from srft.method.sparsity import MergedStatistics, Sketch, rank_table
from srft.method.tangent import coordinates, penalize, project, pull_back

__all__ = ["SRFTAdamW"]

PLAIN = SRFTConfig(rank=0, prior_strength=0.0, damping_strength=0.0)
"""Settings under which the step is AdamW's."""


@dataclass(eq=False, kw_only=True)
class _Operation:
    """What the optimizer knows of one group."""

    group: Group
    prior: GroupPrior | None
    """None also if it keeps no eigenpair."""
    curvature: Tensor
    """``[K]`` L, on the parameter's device."""
    shrinkage: Tensor
    """``[K]`` D."""
    columns: slice
    """Where the operation's K numbers are in its parameter's anchor."""
    ranks: TensorRanks
    """Ranks of the transfer sensitivity; 0.5 throughout before the first statistics."""


class SRFTAdamW(Optimizer):
    """AdamW, regularized by prior and transfer sensitivity; without a strength it is ``torch.optim.AdamW``, bit for bit.

    State, hyper-parameters and ``state_dict`` are AdamW's, with ``anchor`` (V theta_0) in the state of parameters that have a prior, and
    the newest merged statistics in the first parameter group. Unscale and clip gradients before ``step``. In the modes ``penalty``
    and ``projection``, ``step`` changes ``.grad`` in place, as clipping does. Parameters without a prior (new heads, adapters) keep the
    transfer part alone, at full weight.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]] | Iterable[dict[str, Any]],
        *,
        total_steps: int,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        srft: SRFTConfig | None = None,
        prior: PriorSensitivity | None = None,
        pretrained: Mapping[str, Tensor] | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        """Set up parameters, prior and anchors.

        Args:
            named_parameters: ``model.named_parameters()``, or parameter groups whose ``params`` are such pairs.
            total_steps: length of the run, over which the prior hands over.
            lr: learning rate.
            betas: decay of the running means of g and g^2.
            eps: added to the root of the second moment.
            weight_decay: decoupled weight decay.
            srft: the method's settings; None is AdamW.
            prior: keyed by these parameters' names (see ``PriorSensitivity.carried``), on their device; truncated to ``srft.rank``.
            pretrained: theta_0 by name, needed for parameters with a prior only; their present values when None.
            foreach: AdamW kernel over lists of tensors, torch's choice when None.
            fused: AdamW kernel in one launch, torch's choice when None; damping has its own kernel.

        Raises:
            ValueError: parameters come without names, a number is out of range, or the prior has no group of these parameters, another
                shape or fewer eigenpairs than the settings ask for.
        """
        if total_steps < 1:
            raise ValueError(f"total_steps is {total_steps}; expected at least 1, the optimizer steps of the whole run")
        if not (0 <= betas[0] < 1 and 0 <= betas[1] < 1 and eps >= 0 and lr >= 0 and weight_decay >= 0):
            raise ValueError(
                f"lr {lr}, betas {betas}, eps {eps}, weight_decay {weight_decay}; expected betas in [0, 1) and nothing negative"
            )
        self.srft = PLAIN if srft is None else srft
        self.total_steps = total_steps
        self.steps_taken = 0
        self.adaptive = AdaptiveWeight()
        self._prior = prior.truncated(self.srft.rank) if prior is not None else None
        self._pretrained = pretrained
        self._operations: dict[Tensor, list[_Operation]] = {}
        self._prior_ranks: dict[int, Tensor] = {}
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "foreach": foreach, "fused": fused}
        super().__init__(named_parameters, defaults)  # pyrefly: ignore
        self._pretrained = None
        names = [op.group.name for op in self._all_operations()]
        if self._prior is not None and names and not any(name in self._prior.groups for name in names):
            raise ValueError(
                f"prior: none of its groups ({', '.join(list(self._prior.groups)[:2])}, ...) is among the parameters' "
                f"({', '.join(names[:2])}, ...); carry it with the key map of the weights first"
            )

    def _all_operations(self) -> list[_Operation]:
        return [op for operations in self._operations.values() for op in operations]

    @property
    def prior_weight(self) -> float:
        """Share of the prior w at the step about to be taken."""
        if self.srft.schedule == "adaptive":
            return self.adaptive.weight
        return prior_weight(self.srft.schedule, self.srft.kappa, min(self.steps_taken / self.total_steps, 1.0))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters; later than construction, their pre-trained values are the ones that they have now.

        Args:
            param_group: as for any optimizer, ``params`` being pairs of name and parameter.

        Raises:
            ValueError: parameters come without names, or do not fit the prior or the pre-trained values.
        """
        super().add_param_group(param_group)
        added = self.param_groups[-1]
        if "param_names" not in added:
            raise ValueError("parameters come without names, which sensitivities are kept by; pass model.named_parameters()")
        for name, p in zip(added["param_names"], added["params"], strict=True):
            self._adopt(name, p)

    @torch.no_grad()
    def _adopt(self, name: str, p: Tensor) -> None:
        if not p.is_contiguous():
            raise ValueError(f"{name} is not contiguous in memory; call .contiguous() on its data before building the optimizer")
        operations, used = [], 0
        for group in groups_of({name: p}):
            prior = self._prior.groups.get(group.name) if self._prior is not None else None
            if prior is not None and (prior.group.start, prior.group.stop) != (group.start, group.stop):
                raise ValueError(
                    f"prior of {group.name} is of elements {prior.group.start} to {prior.group.stop}, the parameter's are {group.start} to "
                    f"{group.stop}; the key map sends a parameter to one of another shape"
                )
            curvature = shrinkage = torch.zeros(0, dtype=p.dtype, device=p.device)
            if prior is not None and len(prior.eigenvalues) == 0:
                prior = None
            if self._prior is not None and prior is not None:
                top = self._prior.scale if self.srft.scale == "global" else float(prior.eigenvalues[0])
                left_out = prior.residual / max(group.numel - len(prior.eigenvalues), 1)
                ridge = left_out / self.srft.prior_strength if self.srft.prior_strength > 0 else float("inf")
                curvature = (prior.eigenvalues / top).to(p.device, p.dtype)
                shrinkage = (prior.eigenvalues / (prior.eigenvalues + ridge)).to(p.device, p.dtype)
            columns = slice(used, used + len(curvature))
            unknown = TensorRanks(0, torch.full((1,), 0.5, device=p.device))
            operations.append(
                _Operation(group=group, prior=prior, curvature=curvature, shrinkage=shrinkage, columns=columns, ranks=unknown)
            )
            used += len(curvature)
        self._operations[p] = operations
        if used:
            if self._pretrained is not None and name not in self._pretrained:
                raise ValueError(f"pretrained: no values for {name}, which has a prior; expected every parameter that has one")
            values = p if self._pretrained is None else self._pretrained[name].to(p.device, p.dtype).contiguous()
            if values.shape != p.shape:
                raise ValueError(f"pretrained: {name} has shape {tuple(values.shape)}, the parameter {tuple(p.shape)}")
            self.state[p]["anchor"] = torch.cat(
                [coordinates(op.prior.eigenvectors, op.group.of(values)) for op in operations if op.prior is not None]
            )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyrefly: ignore
        """Take one regularized step.

        Args:
            closure: computes the loss again and returns it; not needed.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        settings, w = self.srft, self.prior_weight
        tangent = settings.prior_strength * w > 0
        low, high = settings.damping_range
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            gradients = [p.grad.contiguous() for p in parameters]
            for p, gradient in zip(parameters, gradients, strict=True):
                self._prepare(p, fused=bool(group["fused"]))
                if tangent and settings.mode != "proximal":
                    self._regularize(p, gradient, w)
                if settings.transfer == "two_step":
                    _average_two_steps(self.state[p], gradient)
            if settings.damping_strength > 0 and high > low:
                self._damped_adamw(group, parameters, gradients, w)
            else:
                self._adamw(group, parameters, gradients, group["lr"] * (1 - settings.damping_strength * low))
            if tangent and settings.mode == "proximal":
                strength = float(group["lr"]) * settings.prior_strength * w
                for p in parameters:
                    for op, vectors in self._with_prior(p):
                        pull_back(op.group.of(p), vectors, self._offset(p, op, vectors), op.curvature, strength)
        self.steps_taken += 1
        return loss

    def _prepare(self, p: Tensor, *, fused: bool) -> None:
        state = self.state[p]
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=p.device if fused else "cpu")
        for name in ("exp_avg", "exp_avg_sq", *(("last_square", "two_step") if self.srft.transfer == "two_step" else ())):
            if name not in state:
                state[name] = torch.zeros_like(p)

    def _with_prior(self, p: Tensor) -> list[tuple[_Operation, Tensor]]:
        return [(op, op.prior.eigenvectors) for op in self._operations[p] if op.prior is not None]

    def _offset(self, p: Tensor, op: _Operation, vectors: Tensor) -> Tensor:
        return coordinates(vectors, op.group.of(p)) - self.state[p]["anchor"][op.columns]

    def _regularize(self, p: Tensor, gradient: Tensor, w: float) -> None:
        for op, vectors in self._with_prior(p):
            if self.srft.mode == "penalty":
                penalize(op.group.of(gradient), vectors, self._offset(p, op, vectors), op.curvature, self.srft.prior_strength * w)
            else:
                project(op.group.of(gradient), vectors, op.shrinkage, w)

    def _adamw(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor], lr: float) -> None:
        states = [self.state[p] for p in parameters]
        adamw(
            parameters,
            gradients,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            foreach=group["foreach"],
            fused=group["fused"],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=lr,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _damped_adamw(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor], w: float) -> None:
        if not parameters:
            return
        lr, (beta1, beta2), (low, high) = float(group["lr"]), group["betas"], self.srft.damping_range
        most, span = 1 - self.srft.damping_strength * low, self.srft.damping_strength * (high - low)
        states = [self.state[p] for p in parameters]
        seconds = [state["exp_avg_sq"] for state in states]
        torch._foreach_add_([state["step"] for state in states], 1)
        torch._foreach_lerp_([state["exp_avg"] for state in states], gradients, 1 - beta1)
        torch._foreach_mul_(seconds, beta2)
        torch._foreach_addcmul_(seconds, gradients, gradients, 1 - beta2)
        for p, state in zip(parameters, states, strict=True):
            step = state["step"].item()
            root, correction = (1 - beta2**step) ** 0.5, 1 - beta1**step
            flat, first, second = p.detach().view(-1), state["exp_avg"].view(-1), state["exp_avg_sq"].view(-1)
            two_step = state["two_step"].view(-1) if self.srft.transfer == "two_step" else None
            for op in self._operations[p]:
                share = w if op.prior is not None else 0.0
                # The table holds lr (1 - lambda_d m) without the prior's part of m, so that damping costs one lookup.
                factors = op.ranks.affine(-lr * span * (1 - share), lr * most)
                prior_ranks = self._ranks_of_prior(op.prior) if op.prior is not None and share > 0 else None
                for a, b in chunks(op.group.numel, p.device):
                    part = slice(op.group.start + a, op.group.start + b)
                    magnitude = second[part].sqrt().div_(root)
                    factor = factors.lookup(magnitude if two_step is None else two_step[part].sqrt())
                    if prior_ranks is not None:
                        factor.add_(prior_ranks[a:b], alpha=-lr * span * share)
                    update = torch.div(first[part], magnitude.add_(group["eps"])).div_(correction)
                    if group["weight_decay"]:
                        update.add_(flat[part], alpha=group["weight_decay"])
                    flat[part].addcmul_(update, factor.to(update.dtype), value=-1)

    def _ranks_of_prior(self, prior: GroupPrior) -> Tensor:
        # [n] ranks of the element-wise prior sensitivity, made once and shared by the copies that share eigenvectors.
        key = prior.eigenvectors.data_ptr()
        if key not in self._prior_ranks:
            measure = prior.measure()
            self._prior_ranks[key] = tensor_ranks(rank_table(histogram_of(measure, prior.group.name)), measure.device).lookup(measure)
        return self._prior_ranks[key]

    @torch.no_grad()
    def sketches(self, rank: int = 0, world_size: int = 1) -> Sketch:
        """Histograms of this worker's share of the transfer magnitudes: the shares of all workers add up to the whole.

        Args:
            rank: this worker, from 0.
            world_size: how many workers.

        Returns:
            By group name; a parameter that never had a gradient counts no elements. NaN or infinite magnitudes are a ValueError.
        """
        histograms = {}
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state.get(p, {})
                for op in self._operations[p]:
                    n = op.group.numel
                    share = slice(n * rank // world_size, n * (rank + 1) // world_size)
                    if "exp_avg_sq" not in state:
                        magnitude = torch.zeros(0)
                    elif self.srft.transfer == "two_step":
                        magnitude = op.group.of(state["two_step"])[share].sqrt()
                    else:
                        magnitude = (
                            op.group.of(state["exp_avg_sq"])[share].sqrt().div_((1 - group["betas"][1] ** state["step"].item()) ** 0.5)
                        )
                    histograms[op.group.name] = histogram_of(magnitude, f"second moment of {op.group.name}")
        return Sketch(histograms)

    def set_statistics(self, statistics: MergedStatistics) -> None:
        """Use these ranks, and the weight that the adaptive schedule gives for them, from the next step on.

        Args:
            statistics: merged over all workers.

        Raises:
            ValueError: a group is missing.
        """
        for p, operations in self._operations.items():
            for op in operations:
                if op.group.name not in statistics.tables:
                    raise ValueError(
                        f"statistics of step {statistics.step} lack {op.group.name}; expected every group of the optimizer's parameters"
                    )
                op.ranks = tensor_ranks(statistics.tables[op.group.name], p.device)
        if self.srft.schedule == "adaptive":
            self.adaptive = self.adaptive.after(statistics, self.srft.kappa)
            self.param_groups[0]["adaptive"] = self.adaptive.state_dict()
        self.param_groups[0]["statistics"] = statistics.to_bytes()

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where a run stopped; what AdamW saved is taken too, with the anchors and ranks of the present.

        Args:
            state_dict: from :meth:`state_dict` of this class or of ``torch.optim.AdamW``.

        Raises:
            ValueError: it was written with a prior of another rank.
        """
        anchors = {p: state["anchor"] for p, state in self.state.items() if "anchor" in state}
        options = [{name: group[name] for name in ("foreach", "fused")} for group in self.param_groups]
        super().load_state_dict(state_dict)
        for p, anchor in anchors.items():
            loaded = self.state[p].setdefault("anchor", anchor)
            if loaded.shape != anchor.shape:
                raise ValueError(
                    f"optimizer state holds {len(loaded)} anchor coordinates of a parameter, the prior gives {len(anchor)}; "
                    "resume with the same srft.rank and the same prior"
                )
        for group, option in zip(self.param_groups, options, strict=True):
            for name, value in option.items():
                group.setdefault(name, value)
        self.steps_taken = max((int(state["step"]) for state in self.state.values() if "step" in state), default=0)
        if statistics := self.param_groups[0].get("statistics"):
            self.adaptive = AdaptiveWeight()
            self.set_statistics(MergedStatistics.from_bytes(statistics))
        if adaptive := state_dict["param_groups"][0].get("adaptive"):
            self.adaptive = AdaptiveWeight.from_state(adaptive)
            self.param_groups[0]["adaptive"] = adaptive


def _average_two_steps(state: dict[str, Any], gradient: Tensor) -> None:
    # Mean of this and the last step's squared gradient; the one before the first is zero.
    square = gradient * gradient
    torch.lerp(state["last_square"], square, 0.5, out=state["two_step"])
    state["last_square"] = square
