"""LARS as apex's LARC makes it of SGD, which the official linear protocol trains by."""

import torch
from torch import nn

_EPS = 1e-8  # apex


class Lars(torch.optim.SGD):
    """SGD with momentum, at a rate of its own for each tensor w with gradient g (You, Gitman and Ginsburg 2017).

    Of a group with an `adapted_decay` d the gradient is taken as r (g + d w), r = trust |w| / (|g| + d |w|), 1 where w
    is 0; where g is 0, r is: momentum alone moves w. Other groups are plain SGD. Gradients are overwritten. The update
    is torch's fused kernel, which is told on the device whether anything is not finite and leaves everything as it is.

    Args:
        groups: with `adapted_decay`, and then without `weight_decay`, where a group is to adapt.
    """

    def __init__(self, groups: list[dict], lr: float, momentum: float, trust: float) -> None:
        super().__init__(groups, lr=lr, momentum=momentum, fused=True)
        self.defaults["trust"] = trust  # which copies keep

    @torch.no_grad()
    def step(self) -> None:
        """One update, by gradients that a scaler of losses has unscaled before."""
        assert getattr(self, "grad_scale", None) is None
        for group in self.param_groups:
            moving = [p for p in group["params"] if p.grad is not None]
            if moving and "adapted_decay" in group:
                self._adapt(moving, group["adapted_decay"])
        super().step()

    def _adapt(self, parameters: list[nn.Parameter], decay: float) -> None:
        gradients = [p.grad for p in parameters]
        of_w, of_g = (torch.stack(torch._foreach_norm(tensors)) for tensors in (parameters, gradients))
        rates = torch.where(of_w > 0, self.defaults["trust"] * of_w / (of_g + decay * of_w + _EPS) * (of_g > 0), 1.0)
        if decay:
            torch._foreach_add_(gradients, parameters, alpha=decay)
        torch._foreach_mul_(gradients, rates.unbind())
