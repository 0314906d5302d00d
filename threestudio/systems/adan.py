"""Adan (Xie et al. 2022, "Adan: Adaptive Nesterov Momentum Algorithm"), Algorithm 1."""

from collections.abc import Callable
from typing import Any

import torch


class Adan(torch.optim.Optimizer):
    """Adam with Nesterov momentum in the form of gradient differences.

    `betas` are the decays of the averages of the gradient, of its difference to the last one, and
    of the squared extrapolated gradient (one minus the paper's betas). `weight_decay` is the
    paper's proximal one; with `no_prox` it is AdamW's. `max_grad_norm` > 0 clips the global norm.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float = 0.0,
        no_prox: bool = False,
        foreach: bool = True,  # accepted for configs written for other implementations
    ) -> None:
        if lr < 0 or eps < 0 or len(betas) != 3 or not all(0 <= b < 1 for b in betas):
            raise ValueError(
                f"Adan needs lr >= 0, eps >= 0 and three betas in [0, 1); got lr={lr}, eps={eps}, betas={betas}"
            )
        defaults = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, no_prox=no_prox)
        super().__init__(params, defaults)
        self.defaults["max_grad_norm"] = max_grad_norm  # of all groups together

    def _clip_factor(self) -> float | torch.Tensor:
        max_grad_norm = self.defaults["max_grad_norm"]
        if max_grad_norm <= 0:
            return 1.0
        grads = [p.grad for g in self.param_groups for p in g["params"] if p.grad is not None]
        if not grads:  # of a step that was left out, as its gradient was not finite
            return 1.0
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in grads]))
        return torch.clamp(max_grad_norm / (norm + 1e-12), max=1.0)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        clip = self._clip_factor()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad * clip, group)
        return loss

    def _update(self, parameter: torch.Tensor, grad: torch.Tensor, group: dict) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_diff"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
            state["previous_grad"] = grad.clone()  # the first difference is zero
        state["step"] += 1
        step, (b1, b2, b3), lr = state["step"], group["betas"], group["lr"]
        difference = grad - state["previous_grad"]
        extrapolated = grad + b2 * difference
        state["exp_avg"].lerp_(grad, 1 - b1)
        state["exp_avg_diff"].lerp_(difference, 1 - b2)
        state["exp_avg_sq"].mul_(b3).addcmul_(extrapolated, extrapolated, value=1 - b3)
        state["previous_grad"].copy_(grad)

        denominator = (state["exp_avg_sq"] / (1 - b3**step)).sqrt_().add_(group["eps"])
        momentum = state["exp_avg"] / (1 - b1**step)
        momentum += b2 * state["exp_avg_diff"] / (1 - b2**step)
        decay = lr * group["weight_decay"]
        if group["no_prox"]:
            parameter.mul_(1 - decay).addcdiv_(momentum, denominator, value=-lr)
        else:
            parameter.addcdiv_(momentum, denominator, value=-lr).div_(1 + decay)
