"""What trains, as named choices, and in which groups: what full and sensitivity-regularized fine-tuning are compared with.

Parameters are chosen by patterns on their dotted names, and the first pattern that matches decides. A pattern is matched component by
component: ``*``, ``?`` and ``[...]`` stay within one, ``**`` stands for any number of them. ``blocks.1.**`` never matches ``blocks.10``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from srft.method.adapters import add_adapters, add_lora, add_prompts

__all__ = [
    "AUX_STREAM",
    "PARADIGMS",
    "PUBLISHED_RATES",
    "PUBLISHED_RATES_FE108",
    "RATES",
    "Rate",
    "add_parts",
    "matches",
    "parameter_groups",
    "select_trainable",
    "trains_pretrained",
    "what_trains",
]

AUX_STREAM = "backbone.*_aux.**"
"""Pattern of the stream that RGB alone does not go through."""
PARADIGMS: Mapping[str, tuple[str, ...]] = {
    "full": ("!**.*pos_embed_*", "**"),
    "aux": ("!**.*pos_embed_*", AUX_STREAM, "backbone.fusion.**"),
    "head": ("box_head.**",),
    "bias": ("**.bias",),
    "lora": ("**.lora_A", "**.lora_B"),
    "adapter": ("**.adapter.**",),
    "prompt": ("**.prompt.**", "backbone.patch_embed_aux.**"),
}
"""Patterns of what trains; ``!`` keeps what it matches as pre-trained, and so does no match. The head follows ``freeze_head``."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Learning rate of the parameters that a pattern matches first."""

    pattern: str
    multiplier: float
    """Their learning rate over the run's."""


PUBLISHED_RATES: tuple[Rate, ...] = (
    Rate(pattern="backbone.norm_*.**", multiplier=0.01),
    Rate(pattern="backbone.patch_embed_*.**", multiplier=0.5),
    Rate(pattern="backbone.blocks_*.**", multiplier=1.0),
    Rate(pattern="backbone.fusion.**", multiplier=0.5),
)
"""The published recipe of a two-stream tracker at a learning rate of 1e-4."""

PUBLISHED_RATES_FE108: tuple[Rate, ...] = (
    Rate(pattern="backbone.norm_*.**", multiplier=0.01),
    Rate(pattern="backbone.patch_embed_rgb.**", multiplier=0.1),
    Rate(pattern="backbone.patch_embed_aux.**", multiplier=0.5),
    Rate(pattern="backbone.blocks_rgb.**", multiplier=0.2),
    Rate(pattern="backbone.blocks_aux.**", multiplier=1.0),
    Rate(pattern="backbone.fusion.**", multiplier=0.5),
)
"""The same for FE108, at a learning rate of 1e-4."""


RATES: Mapping[str, tuple[Rate, ...]] = {
    "uniform": (Rate(pattern="**", multiplier=1.0),),
    "published": (*PUBLISHED_RATES, Rate(pattern="**", multiplier=1.0)),
    "published_fe108": (*PUBLISHED_RATES_FE108, Rate(pattern="**", multiplier=1.0)),
}
"""By name; what the recipes say nothing of (an unfrozen head) has the run's own rate."""


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern matches a whole dotted name.

    Args:
        pattern: components separated by dots; ``**`` is any number of components, none included.
        name: dotted name of a parameter.

    Returns:
        True if it does.
    """

    def match(left: list[str], right: list[str]) -> bool:
        if not left:
            return not right
        if left[0] == "**":
            return any(match(left[1:], right[i:]) for i in range(len(right) + 1))
        return bool(right) and fnmatchcase(right[0], left[0]) and match(left[1:], right[1:])

    return match(pattern.split("."), name.split("."))


def what_trains(paradigm: str) -> tuple[str, bool]:
    """The choice behind a paradigm's name.

    Args:
        paradigm: a key of ``PARADIGMS`` for plain training; with ``srft-`` in front, for regularized steps; ``srft`` is ``srft-full``.

    Returns:
        A key of ``PARADIGMS``, and whether steps are regularized.

    Raises:
        ValueError: the paradigm is unknown.
    """
    choice = "full" if paradigm == "srft" else paradigm.removeprefix("srft-")
    if choice not in PARADIGMS:
        raise ValueError(f"paradigm is {paradigm!r}; expected one of {', '.join(PARADIGMS)}, with srft- in front to regularize, or srft")
    return choice, choice != paradigm


def trains_pretrained(paradigm: str, *, freeze_head: bool) -> bool:
    """Whether a paradigm changes pre-trained weights at all, and not only those of added parts.

    Args:
        paradigm: see :func:`what_trains`.
        freeze_head: keep the head as pre-trained.

    Returns:
        False for LoRA and adapters beside a frozen head.
    """
    return what_trains(paradigm)[0] not in ("lora", "adapter") or not freeze_head


def add_parts(network: nn.Module, paradigm: str, *, seed: int = 0) -> set[str]:
    """Add the new parameters that a paradigm trains; the function stays that of the pre-trained network.

    Args:
        network: the pre-trained tracker, changed in place; LoRA's A and B, adapters and prompts come with their published sizes.
        paradigm: ``lora``, ``adapter`` and ``prompt`` add parts, the other choices none; see :func:`what_trains`.
        seed: of the new parameters; the global random state is left alone.

    Returns:
        Names of the new parameters, which have no pre-trained values and so no prior.
    """
    choice, _ = what_trains(paradigm)
    before = {name for name, _ in network.named_parameters()}
    match choice:
        case "lora":
            add_lora(network, seed=seed)
        case "adapter":
            add_adapters(network, seed=seed)
        case "prompt":
            add_prompts(network, seed=seed)
    return {name for name, _ in network.named_parameters()} - before


def select_trainable(network: nn.Module, paradigm: str, *, freeze_head: bool) -> list[str]:
    """Set ``requires_grad`` of every parameter by the paradigm.

    Position embeddings never train, as in the published recipe. The head trains with every paradigm unless it is frozen, and always
    with ``head``.

    Args:
        network: a tracker with its head in ``box_head`` and with the paradigm's parts (see :func:`add_parts`); changed in place.
        paradigm: see :func:`what_trains`.
        freeze_head: keep the head as pre-trained (ignored by ``head``).

    Returns:
        Names of the trainable parameters.

    Raises:
        ValueError: one of the paradigm's patterns matches no parameter.
    """
    choice, _ = what_trains(paradigm)
    patterns = PARADIGMS[choice]
    if choice != "head":
        patterns = ("!box_head.**" if freeze_head else "box_head.**", *patterns)
    parameters = dict(network.named_parameters())
    for pattern in patterns:
        if not any(matches(pattern.removeprefix("!"), name) for name in parameters):
            raise ValueError(
                f"paradigm {paradigm}: no parameter matches {pattern.removeprefix('!')}; add its parts first (add_parts), to a tracker "
                f"that has the streams that it needs. The network has {', '.join(list(parameters)[:3])}, ..."
            )
    names = []
    for name, parameter in parameters.items():
        first = next((pattern for pattern in patterns if matches(pattern.removeprefix("!"), name)), "!")
        parameter.requires_grad_(not first.startswith("!"))
        if parameter.requires_grad:
            names.append(name)
    return names


def parameter_groups(network: nn.Module, rates: Sequence[Rate], *, lr: float) -> list[dict[str, Any]]:
    """Groups of the trainable parameters for an optimizer, each parameter in exactly one.

    Args:
        network: with ``requires_grad`` set.
        rates: the first whose pattern matches a parameter decides; end with ``**`` for all the others.
        lr: the run's learning rate.

    Returns:
        One group per rate that has a trainable parameter, in their order: ``params`` (pairs of name and parameter), ``lr``, and
        ``lr_multiplier``, which a schedule of the learning rate multiplies by.

    Raises:
        ValueError: a multiplier is negative, a pattern matches no parameter of the network (whether it trains or not), or a trainable
            parameter matches none.
    """
    members: list[list[tuple[str, nn.Parameter]]] = [[] for _ in rates]
    used = [False] * len(rates)
    for name, parameter in network.named_parameters():
        found = [i for i, rate in enumerate(rates) if matches(rate.pattern, name)]
        for i in found:
            used[i] = True
        if not parameter.requires_grad:
            continue
        if not found:
            raise ValueError(f"rates: {name} trains but matches none of {', '.join(rate.pattern for rate in rates)}; end with a rate of **")
        members[found[0]].append((name, parameter))
    for rate, matched in zip(rates, used, strict=True):
        if not matched:
            raise ValueError(f"rates: no parameter matches {rate.pattern}; expected a pattern of whole dotted names, as blocks.1.**")
        if rate.multiplier < 0:
            raise ValueError(f"rates: the multiplier of {rate.pattern} is {rate.multiplier}; expected at least 0")
    return [
        {"params": params, "lr": lr * rate.multiplier, "lr_multiplier": rate.multiplier}
        for rate, params in zip(rates, members, strict=True)
        if params
    ]
