"""The optimiser and the checkpoint that every stage shares.

Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon/): each weight matrix moves along the
orthogonalised momentum of its gradient. Everything else gets Adam. Updates are scaled to the size
of Adam's (Moonlight, arXiv 2502.16982), so that one learning rate fits both.
"""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def orthogonal(matrices: Tensor) -> Tensor:
    """[N, R, C] → the nearest semi-orthogonal matrices, roughly, by five Newton-Schulz steps."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x: Tensor = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Optimiser:
    """Muon for matrices and kernels, Adam for the rest, the gradient clipped to norm 1.

    lr: for both kinds. Embedding tables and `adam_names` (inputs and outputs of a model) get Adam.
    """

    def __init__(
        self, named: Iterable[tuple[str, nn.Parameter]], lr: float, adam_names: tuple[str, ...]
    ) -> None:
        self.lr = lr
        self.muon: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for name, parameter in named:
            is_matrix = parameter.ndim >= 2 and min(parameter.shape[0], parameter[0].numel()) > 8
            to_muon = is_matrix and not any(part in name for part in adam_names)
            (self.muon if to_muon else rest).append(parameter)
        self.adam = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.99), weight_decay=0.0)
        self.momentum = [torch.zeros_like(p) for p in self.muon]

    @torch.no_grad()
    def step(self, rate: float) -> float:
        """Update once at `rate` times the learning rate; clear gradients; return their norm."""
        parameters = self.muon + [p for group in self.adam.param_groups for p in group["params"]]
        norm = float(nn.utils.clip_grad_norm_(parameters, 1.0))
        ahead: dict[tuple[int, ...], list[tuple[nn.Parameter, Tensor]]] = {}
        for parameter, momentum in zip(self.muon, self.momentum, strict=True):
            if parameter.grad is None:
                continue
            momentum.mul_(0.95).add_(parameter.grad)
            look = parameter.grad.add(momentum, alpha=0.95).flatten(1)
            ahead.setdefault(tuple(look.shape), []).append((parameter, look))
            parameter.grad = None
        for shape, group in ahead.items():  # one batch of products for each shape
            scale = 0.2 * max(shape) ** 0.5
            updates = orthogonal(torch.stack([look for _, look in group]))
            for (parameter, _), update in zip(group, updates, strict=True):
                parameter.mul_(1 - 0.01 * self.lr * rate)
                parameter.add_(update.view_as(parameter), alpha=-self.lr * rate * scale)
        for settings in self.adam.param_groups:
            settings["lr"] = self.lr * rate
        self.adam.step()
        self.adam.zero_grad()
        return norm

    def state(self) -> dict[str, Any]:
        """All that `load` needs."""
        return {"momentum": self.momentum, "adam": self.adam.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        for own, saved in zip(self.momentum, state["momentum"], strict=True):
            own.copy_(saved)
        self.adam.load_state_dict(state["adam"])


def trapezoid(step: int, steps: int, warm_up: int = 50, decay: float = 0.5) -> float:
    """Learning-rate factor: up over `warm_up` steps, flat, down to 0 over the last `decay`."""
    return min(1.0, (step + 1) / warm_up, max(0.0, (steps - step) / (decay * steps)))


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` completely or not at all. For resuming only: never part of the weights."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The state saved at `path`, or None."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location=device(), weights_only=True)
    return state


class Progress:
    """At most one line a minute: the step, the rate and running means of measured values."""

    def __init__(self, stage: str, steps: int, every: float = 30.0) -> None:
        self.stage, self.steps, self.every = stage, steps, every
        self.start = self.last = time.monotonic()
        self.first: int | None = None
        self.mean: dict[str, float] = {}

    def __call__(self, step: int, **values: float) -> None:
        if self.first is None:
            self.first = step
        for name, value in values.items():
            self.mean[name] = 0.97 * self.mean.get(name, value) + 0.03 * value
        now = time.monotonic()
        if now - self.last < self.every and step + 1 < self.steps:
            return
        self.last = now
        pace = (now - self.start) / (step + 1 - self.first)
        figures = " ".join(f"{name} {value:.4g}" for name, value in self.mean.items())
        left = pace * (self.steps - step - 1) / 60
        print(
            f"{self.stage} {step + 1}/{self.steps} {pace:.2f} s/step {left:.0f} min left {figures}",
            flush=True,
        )
