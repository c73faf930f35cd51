"""AdamW with sensitivity regularization: one regularized step.

Symbols: g gradient, w(t) prior weight, V and lambda the prior's eigenpairs of an operation, theta_0 the pre-trained values, c = V (theta -
theta_0) the displacement in the prior's subspace, L = lambda / scale the dimensionless eigenvalues, r the dimensionless remainder of the
diagonal, if the prior has one.

1. Tangent-space term. ``penalty``: g += lambda_p w (V^T L c + r (theta - theta_0)). ``projection``: g -= w V^T D V g with D = lambda /
   (lambda + mu / lambda_p) and mu = residual / (n - K), the mean eigenvalue left out; then, element-wise, g -= w r / (r + mu / lambda_p) g.
   ``proximal``: after the step, theta -= V^T (s / (1 + s)) c with s = lr lambda_p w L, the closed-form proximal step of the same quadratic,
   which no strength makes unstable; then the same, element-wise, with r in the place of L.
2. AdamW direction u; its moments see the regularized gradient.
3. Damping: theta -= lr (1 - lambda_d m) (u + weight_decay theta), m = m_min + (m_max - m_min) (w rank(s_prior) + (1 - w) rank(s_trans));
   other forms of m, and keeping the mean rate, are in ``kernel.Damping``.

theta_0 enters as ``V theta_0``, K numbers per operation, so that no copy of the weights is kept unless there is a remainder. V theta is
taken while the step has the new values at hand, so that V is read once. Ranks are those of magnitudes (roots of running mean squares,
corrected for Adam's start), which have the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from srft.config import SRFTConfig
from srft.method.groups import groups_of
from srft.method.kernel import AdamStep, Bucket, Damping, Tangent, average_two_steps, buckets_of
from srft.method.operation import Binding, Operation, unranked
from srft.method.prior import PriorSensitivity
from srft.method.schedule import AdaptiveWeight, prior_weight
from srft.method.shards import local, shard_of, shard_values
from srft.method.sketch import histograms_of, rank_tables
from srft.method.sparsity import MergedStatistics, Sketch
from srft.method.term import TangentTerm

__all__ = ["SRFTAdamW"]

PLAIN = SRFTConfig(rank=0, prior_strength=0.0, damping_strength=0.0)
"""Settings under which the step is AdamW's."""


class SRFTAdamW(Optimizer):
    """AdamW, regularized by prior and transfer sensitivity; without a strength it is ``torch.optim.AdamW``, bit for bit.

    State, hyper-parameters and ``state_dict`` are AdamW's, with ``anchor`` (V theta_0) in the state of parameters that have a prior, and
    the newest merged statistics in the first parameter group. Unscale and clip gradients before ``step``. In the modes ``penalty``
    and ``projection``, ``step`` changes ``.grad`` in place, as clipping does. Parameters without a prior (new heads, adapters) keep the
    transfer part alone, at full weight.

    Parameters may be shards: with FSDP2 (``fully_shard``) build it after sharding, on every worker alike, as any torch optimizer. Its steps
    are then collective, with one small reduction each.

    Change weights between steps by torch's operations, not through ``.data``, which hides for one step that V theta has changed.
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
        amsgrad: bool = False,
        maximize: bool = False,
        srft: SRFTConfig | None = None,
        prior: PriorSensitivity | None = None,
        pretrained: Mapping[str, Tensor] | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        """Set up parameters, prior and anchors. Regularized steps have a kernel of their own, whatever ``foreach`` and ``fused`` are.

        Args:
            named_parameters: ``model.named_parameters()``, or parameter groups whose ``params`` are such pairs.
            total_steps: length of the run, over which the prior hands over.
            lr: learning rate.
            betas: decay of the running means of g and g^2.
            eps: added to the root of the second moment.
            weight_decay: decoupled weight decay.
            amsgrad: divide by the largest second moment so far.
            maximize: take steps up the gradient instead of down.
            srft: the method's settings; None is AdamW.
            prior: keyed by these parameters' names (see ``PriorSensitivity.carried``), on their device; truncated to ``srft.rank``.
            pretrained: theta_0 by name, needed for parameters with a prior only; their present values when None.
            foreach: AdamW kernel over lists of tensors, torch's choice when None.
            fused: AdamW kernel in one launch, torch's choice when None.

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
        self._binding = Binding(settings=self.srft, prior=None if prior is None else prior.truncated(self.srft.rank))
        self._pretrained = pretrained
        self._term = TangentTerm()
        self._bucketed: dict[tuple[int, tuple[int, ...]], list[Bucket]] = {}
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad, "maximize": maximize}
        super().__init__(named_parameters, {**defaults, "foreach": foreach, "fused": fused})  # pyrefly: ignore
        self._pretrained = None
        names = [op.group.name for operations in self._term.operations.values() for op in operations]
        if prior is not None and names and not any(name in prior.groups for name in names):
            raise ValueError(
                f"prior: none of its groups ({', '.join(list(prior.groups)[:2])}, ...) is among the parameters' "
                f"({', '.join(names[:2])}, ...); carry it with the key map of the weights first"
            )

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
        if "param_names" not in self.param_groups[-1]:
            raise ValueError("parameters come without names, which sensitivities are kept by; pass model.named_parameters()")
        for name, p in zip(self.param_groups[-1]["param_names"], self.param_groups[-1]["params"], strict=True):
            self._adopt(name, p)

    @torch.no_grad()
    def _adopt(self, name: str, p: Tensor) -> None:
        values, shard = local(p), shard_of(name, p)
        if not values.is_contiguous():
            raise ValueError(f"{name} is not contiguous in memory; call .contiguous() on its data before building the optimizer")
        groups, origin = groups_of({name: p}), values.view(-1)
        if self._pretrained is not None and any(self._binding.prior_of(group) for group in groups):
            if name not in self._pretrained:
                raise ValueError(f"pretrained: no values for {name}, which has a prior; expected every parameter that has one")
            origin = shard_values(name, self._pretrained[name], p, shard)
        operations: list[Operation] = []
        for group in groups:
            operations.append(self._binding.operation(group, shard, origin, operations[-1].columns.stop if operations else 0))
        anchor = self._term.adopt(p, operations, shard, origin)
        if anchor is not None:
            self.state[p]["anchor"] = anchor

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyrefly: ignore
        """Take one regularized step.

        Args:
            closure: computes the loss again and returns it; not needed.

        Returns:
            What the closure returned. A sparse gradient is a ValueError.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        settings, w = self.srft, self.prior_weight
        strength = settings.prior_strength * w
        mode = settings.mode if strength > 0 else None
        gradients = self._gradients()
        combinations: dict[Operation, Tensor] = {}
        if mode == "penalty":
            combinations = self._term.penalty(gradients, strength)
        if mode == "projection":
            combinations = self._term.projection(gradients, w)
        damping = Damping.of(settings, w)
        tangent = Tangent(
            prepared=self._term.prepared(combinations),
            penalty=strength if mode == "penalty" else 0.0,
            projection=w if mode == "projection" else 0.0,
            accumulate=mode in ("penalty", "proximal"),
        )
        for number, group in enumerate(self.param_groups):
            parameters = [p for p in group["params"] if p in gradients]
            for p in parameters:
                self._prepare(p, group)
            if mode is None and damping.span == 0:
                self._adamw(group, parameters, group["lr"] * damping.most * damping.gain)
                continue
            values = {p: local(p).view(-1) for p in parameters}
            states = {p: self._flat_state(p) for p in parameters}
            torch._foreach_add_([self.state[p]["step"] for p in parameters], 1)
            for step, buckets in self._buckets(number, parameters):
                for bucket in buckets:
                    bucket.update(values, gradients, states, AdamStep.of(group, step), damping, tangent, self._term.scratch)
            for p in parameters:
                for op in self._term.operations[p]:
                    op.version = values[p]._version
        if mode == "proximal":
            self._term.pull_back({p: float(g["lr"]) * strength for g in self.param_groups for p in g["params"] if p in gradients})
        self.steps_taken += 1
        return loss

    def _steps(self, parameters: list[Tensor]) -> dict[Tensor, float]:
        # Steps taken; one transfer where a fused kernel keeps them on a GPU.
        return dict(zip(parameters, torch.stack([self.state[p]["step"] for p in parameters]).tolist(), strict=True)) if parameters else {}

    def _buckets(self, number: int, parameters: list[Tensor]) -> list[tuple[float, list[Bucket]]]:
        # By the steps that the parameters have taken, of which there are several only where some had no gradient at times.
        taken: dict[float, list[Tensor]] = {}
        for p, step in self._steps(parameters).items():
            taken.setdefault(step, []).append(p)
        result = []
        for step, members in taken.items():
            key = number, tuple(map(id, members))
            if key not in self._bucketed:
                self._bucketed[key] = buckets_of((p, op) for p in members for op in self._term.operations[p])
            result.append((step, self._bucketed[key]))
        return result

    def _gradients(self) -> dict[Tensor, Tensor]:
        # Flattened, of the elements held here, by parameter.
        gradients = {}
        for group in self.param_groups:
            for name, p in zip(group["param_names"], group["params"], strict=True):
                if p.grad is not None:
                    if p.grad.is_sparse:
                        raise ValueError(f"{name} has a sparse gradient; expected dense ones, as AdamW does")
                    p.grad = p.grad.contiguous()
                    gradients[p] = local(p.grad).view(-1) if not group["maximize"] else -local(p.grad).view(-1)
        return gradients

    def _prepare(self, p: Tensor, group: Mapping[str, Any]) -> None:
        state = self.state[p]
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=p.device if group["fused"] else "cpu")
        two_step = ("last_square", "two_step") if self.srft.transfer == "two_step" else ()
        for name in ("exp_avg", "exp_avg_sq", *two_step, *(("max_exp_avg_sq",) if group["amsgrad"] else ())):
            if name not in state:
                state[name] = torch.zeros_like(p)

    def _flat_state(self, p: Tensor) -> dict[str, Tensor]:
        return {name: local(value).view(-1) for name, value in self.state[p].items() if name not in ("step", "anchor")}

    def _adamw(self, group: dict[str, Any], parameters: list[Tensor], lr: float) -> None:
        states = [self.state[p] for p in parameters]
        if self.srft.transfer == "two_step":
            for p, state in zip(parameters, states, strict=True):
                average_two_steps(local(state["last_square"]), local(state["two_step"]), local(p.grad))  # pyrefly: ignore
        adamw(
            parameters,
            [p.grad for p in parameters],  # pyrefly: ignore
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [state["max_exp_avg_sq"] for state in states] if group["amsgrad"] else [],
            [state["step"] for state in states],
            foreach=group["foreach"],
            fused=group["fused"],
            amsgrad=group["amsgrad"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=lr,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
        )

    @torch.no_grad()
    def sketches(self, rank: int = 0, world_size: int = 1) -> Sketch:
        """Histograms of this worker's share of the transfer magnitudes: the shares of all workers add up to the whole.

        Args:
            rank: this worker, from 0.
            world_size: how many workers. Sharded parameters know both, and their share is what is held here.

        Returns:
            By group name; a parameter that never had a gradient counts no elements. NaN or infinite magnitudes are a ValueError.
        """
        return Sketch(histograms_of(self._magnitudes(rank, world_size), "second moment"))

    def _magnitudes(self, rank: int, world_size: int) -> Iterator[tuple[str, Tensor]]:
        # Of this worker's share, by group name.
        for group in self.param_groups:
            steps = self._steps([p for p in group["params"] if "step" in self.state.get(p, {})])
            for p in group["params"]:
                state, shard = self.state.get(p, {}), self._term.shards[p]
                index, count = shard.copy if shard.distributed else (rank, world_size)
                for op in self._term.operations[p]:
                    n = op.where.stop - op.where.start
                    share = slice(op.where.start + n * index // count, op.where.start + n * (index + 1) // count)
                    if not steps.get(p):
                        yield op.group.name, torch.zeros(0, device=p.device)
                    elif self.srft.transfer == "two_step":
                        yield op.group.name, local(state["two_step"]).view(-1)[share].sqrt()
                    else:
                        root = (1 - group["betas"][1] ** steps[p]) ** 0.5
                        yield op.group.name, local(state["exp_avg_sq"]).view(-1)[share].sqrt().mul_(1 / root)

    def set_statistics(self, statistics: MergedStatistics) -> None:
        """Use these ranks, and the weight that the adaptive schedule gives for them, from the next step on.

        Args:
            statistics: merged over all workers.

        Raises:
            ValueError: a group is missing.
        """
        for device in {p.device for p in self._term.operations}:
            mine = [op for p, operations in self._term.operations.items() for op in operations if p.device == device]
            if missing := [op.group.name for op in mine if op.group.name not in statistics.tables]:
                raise ValueError(f"statistics of step {statistics.step} lack {missing[0]}; expected every group of the parameters")
            tables = rank_tables({op.group.name: statistics.tables[op.group.name] for op in mine}, device)
            for op in mine:
                op.ranks = tables[op.group.name]
        if self.srft.schedule == "adaptive":
            self.adaptive = self.adaptive.after(statistics, self.srft.kappa)
            self.param_groups[0]["adaptive"] = self.adaptive.state_dict()
        self.param_groups[0]["statistics"] = statistics.to_bytes()

    def named_state(self) -> dict[str, Tensor]:
        """Every tensor of the state by the names of its kind and parameter: what a sharded checkpoint holds, and is read back into.

        Parameters that had no gradient yet get the state that they will start from, so that the names are always the same.

        Returns:
            ``exp_avg.<parameter>``, ``step.<parameter>``, ...; the optimizer's own tensors, DTensors where parameters are sharded.
        """
        tensors = {}
        for group in self.param_groups:
            for name, p in zip(group["param_names"], group["params"], strict=True):
                self._prepare(p, group)
                tensors |= {f"{kind}.{name}": value for kind, value in self.state[p].items()}
        return tensors

    def method_state(self) -> dict[str, Any]:
        """What the state holds besides tensors, the same on every worker.

        Returns:
            Steps taken, and the newest merged statistics and the adaptive schedule where there are any.
        """
        kept = {name: self.param_groups[0][name] for name in ("statistics", "adaptive") if name in self.param_groups[0]}
        return {"steps_taken": self.steps_taken, **kept}

    def resume(self, method_state: Mapping[str, Any]) -> None:
        """Go on after :meth:`named_state` was filled from a checkpoint.

        Args:
            method_state: from :meth:`method_state` when it was written.
        """
        steps = [int(state["step"]) for state in self.state.values() if "step" in state]
        self.steps_taken = method_state.get("steps_taken", max(steps, default=0))
        for operations in self._term.operations.values():
            for op in operations:
                op.total, op.ranks = None, unranked(op.curvature.device)
        self.adaptive = AdaptiveWeight()
        if statistics := method_state.get("statistics"):
            self.set_statistics(MergedStatistics.from_bytes(statistics))
        if adaptive := method_state.get("adaptive"):
            self.adaptive = AdaptiveWeight.from_state(adaptive)
            self.param_groups[0]["adaptive"] = adaptive

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where a run stopped; what AdamW saved is taken too, with the anchors of the present.

        Args:
            state_dict: from :meth:`state_dict` of this class or of ``torch.optim.AdamW``.

        Raises:
            ValueError: it was written with a prior of another rank.
        """
        options = [{name: group[name] for name in ("foreach", "fused", "amsgrad", "maximize")} for group in self.param_groups]
        anchors = {p: state["anchor"] for p, state in self.state.items() if "anchor" in state}
        order = [p for group in self.param_groups for p in group["params"]]
        saved = dict(zip((i for group in state_dict["param_groups"] for i in group["params"]), order, strict=False))
        # Not those that the base class loads: it would round them to the parameter's type.
        saved = {p: state_dict["state"][i]["anchor"] for i, p in saved.items() if "anchor" in state_dict["state"].get(i, {})}
        super().load_state_dict(state_dict)
        for p, anchor in anchors.items():
            loaded = saved.get(p, anchor)
            if loaded.shape != anchor.shape:
                raise ValueError(
                    f"optimizer state holds {len(loaded)} anchor coordinates of a parameter, the prior gives {len(anchor)}; "
                    "resume with the same srft.rank and the same prior"
                )
            self.state[p]["anchor"] = anchor.copy_(loaded)
        for group, option in zip(self.param_groups, options, strict=True):
            for name, value in option.items():
                group.setdefault(name, value)
        first = state_dict["param_groups"][0]
        self.resume({name: first[name] for name in ("statistics", "adaptive") if first.get(name)})
