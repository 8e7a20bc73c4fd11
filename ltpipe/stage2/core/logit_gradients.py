"""Gradients of losses by stacked logits: by hand where softmax has one form, else by autograd."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ltpipe.losses.base import Loss, SoftmaxForm, SoftmaxLoss


class LogitGradient(Protocol):
    """A loss as the fit loop needs it."""

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the gradient of each model's mean loss by its logits, which may be overwritten.

        Args:
            logits: (G, B, P, C), models side by side that share a batch along P.
            target: (G, B).
        """
        ...


class SoftmaxGradient:
    """Mean cross-entropy of a loss's softmax form, with class weights or without.

    It covers cross-entropy, balanced softmax, logit adjustment and LDAM. `scale` multiplies the
    logits before the form is applied.
    """

    def __init__(
        self,
        form: SoftmaxForm,
        weights: Tensor | None = None,
        scale: float = 1.0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.scale = scale * form.scale
        self.margins = None if form.margins is None else (form.scale * form.margins).to(device)
        self.prior = None if form.prior is None else form.prior.to(device)
        self.weights = None if weights is None else weights.to(device)

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        places = target[:, :, None, None].expand(*logits.shape[:3], 1)
        if self.scale != 1:
            logits.mul_(self.scale)
        if self.margins is not None:
            logits.scatter_add_(3, places, -self.margins[places])
        if self.prior is not None:
            logits.add_(self.prior)
        gradient = torch.softmax(logits, dim=-1)
        gradient.scatter_add_(3, places, gradient.new_full((), -1.0).expand(places.shape))
        if self.weights is None:
            return gradient.mul_(self.scale / target.shape[1])
        weights = self.weights[target]
        shares = weights * (self.scale / weights.sum(1, keepdim=True))
        return gradient.mul_(shares[:, :, None, None])


class AutogradGradient:
    """The gradient of any loss, through its value per sample."""

    def __init__(self, loss: Loss, scale: float = 1.0, device: torch.device | str = "cpu") -> None:
        self.loss = loss.to(device)
        self.scale = scale

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        leaf = (logits * self.scale).requires_grad_()
        targets = target.unsqueeze(2).expand(logits.shape[:3])
        with torch.enable_grad():
            losses = self.loss.per_sample(leaf.flatten(0, 2), targets.flatten())
            losses = losses.view(targets.shape)
            weights = self.loss.class_weights()
            if weights is None:
                value = losses.mean(1).sum()
            else:
                of_targets = weights[target].unsqueeze(2)
                value = ((of_targets * losses).sum(1) / of_targets.sum(1)).sum()
            (gradient,) = torch.autograd.grad(value, leaf)
        return gradient * self.scale


def logit_gradient(
    loss: Loss, scale: float = 1.0, device: torch.device | str = "cpu"
) -> LogitGradient:
    """Return the gradient of `loss` on ``scale`` times the logits, by hand where it can be."""
    if isinstance(loss, SoftmaxLoss):
        return SoftmaxGradient(loss.form, loss.class_weights(), scale, device)
    return AutogradGradient(loss, scale, device)
