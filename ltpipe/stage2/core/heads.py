"""Stacked classifiers for the fit loop: linear maps with class-wise scales, and cosines."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ltpipe.stage2.core.fit import Parameters
from ltpipe.stage2.core.logit_gradients import LogitGradient


class LinearModel:
    """Logits ``scale_c (W_c . x + b_c)`` from weight (M, C, D), bias (M, C) and scale (M, C).

    Bias and scale may be absent. `trained` names the parameters that gradients are wanted for.
    """

    def __init__(self, gradient: LogitGradient, trained: Sequence[str]) -> None:
        self.gradient = gradient
        self.trained = trained

    def gradients(self, parameters: Parameters, inputs: Tensor, target: Tensor) -> Parameters:
        plain = _stacked_logits(parameters, inputs)
        scale = parameters.get("scale")
        if scale is None:
            by_plain = self.gradient(plain, target)
            gradients: Parameters = {}
        else:
            by_group = scale.view(len(inputs), 1, -1, scale.shape[1])
            by_logits = self.gradient(plain * by_group, target)
            gradients = {"scale": (by_logits * plain).sum(1).flatten(0, 1)}
            by_plain = by_logits.mul_(by_group)
        if "bias" in self.trained:
            gradients["bias"] = by_plain.sum(1).flatten(0, 1)
        if "weight" in self.trained:
            gradients["weight"] = weight_gradient(by_plain, inputs)
        return {name: gradients[name] for name in self.trained}


class CosineModel:
    """Logits ``x . W_c / |W_c|`` from weight (M, C, D).

    Inputs are taken as they come: FFN's mixtures of unit features are not unit again.
    """

    def __init__(self, gradient: LogitGradient) -> None:
        self.gradient = gradient

    def gradients(self, parameters: Parameters, inputs: Tensor, target: Tensor) -> Parameters:
        weight = parameters["weight"]
        norms = torch.linalg.vector_norm(weight, dim=2, keepdim=True).clamp_min_(1e-12)
        directions = weight / norms
        by_logits = self.gradient(_products(directions, inputs), target)
        gradient = weight_gradient(by_logits, inputs)
        radial = torch.linalg.vecdot(gradient, directions).unsqueeze(-1)
        gradient.addcmul_(radial, directions, value=-1).div_(norms)
        return {"weight": gradient}


class AutogradModel:
    """Logits of any form: their gradient by the parameters is autograd's.

    Args:
        forward: makes logits (G, B, P, C) of all parameters and inputs (G, B, D).
        trained: the parameters that gradients are wanted for.
    """

    def __init__(
        self,
        forward: Callable[[Parameters, Tensor], Tensor],
        gradient: LogitGradient,
        trained: Sequence[str],
    ) -> None:
        self.forward = forward
        self.gradient = gradient
        self.trained = trained

    def gradients(self, parameters: Parameters, inputs: Tensor, target: Tensor) -> Parameters:
        leaves = {name: parameters[name].detach().requires_grad_() for name in self.trained}
        with torch.enable_grad():
            logits = self.forward({**parameters, **leaves}, inputs)
            by_logits = self.gradient(logits.detach().clone(), target)
            found = torch.autograd.grad(logits, list(leaves.values()), by_logits)
        return dict(zip(leaves, found, strict=True))


def _stacked_logits(parameters: Parameters, inputs: Tensor) -> Tensor:
    """Return ``W_c . x + b_c`` (G, B, P, C) of inputs (G, B, D), class-wise scales left out."""
    plain = _products(parameters["weight"], inputs)
    bias = parameters.get("bias")
    if bias is not None:
        plain.add_(bias.view(len(inputs), 1, -1, bias.shape[1]))
    return plain


def weight_gradient(by_logits: Tensor, inputs: Tensor) -> Tensor:
    """Return the gradient (M, C, D) of a weight from that of its products (G, B, P, C)."""
    classes = by_logits.shape[3]
    gradient = torch.bmm(by_logits.flatten(2).transpose(1, 2), inputs)
    return gradient.view(-1, classes, inputs.shape[2])


def _products(weight: Tensor, inputs: Tensor) -> Tensor:
    """Return (G, B, P, C): models that share a batch stand side by side in one product."""
    groups, classes = len(inputs), weight.shape[1]
    side_by_side = weight.reshape(groups, -1, weight.shape[2])
    products = torch.bmm(inputs, side_by_side.transpose(1, 2))
    return products.view(*products.shape[:2], -1, classes)


def linear_logits(one: Parameters, inputs: Tensor) -> Tensor:
    """Return the logits (N, C) of one of `LinearModel`'s models for inputs (N, D)."""
    plain = F.linear(inputs, one["weight"], one.get("bias"))
    return one["scale"] * plain if "scale" in one else plain


def model_at(parameters: Parameters, model: int) -> Parameters:
    """Return one of M models, without the axis of models."""
    return {name: values[model] for name, values in parameters.items()}


def cosines(weight: Tensor, inputs: Tensor) -> Tensor:
    """Return ``inputs (N, D) . W_c / |W_c|`` of one classifier (C, D): (N, C)."""
    return inputs @ F.normalize(weight, dim=1).T


def classifier_model(gradient: LogitGradient, *, cosine: bool) -> LinearModel | CosineModel:
    """Return the models of cosine classifiers, or of linear ones that train weight and bias."""
    return CosineModel(gradient) if cosine else LinearModel(gradient, ("weight", "bias"))


def random_classifier(
    classes: int, dimension: int, generator: torch.Generator, *, cosine: bool
) -> Parameters:
    """Return the weight of a fresh cosine classifier, or weight and bias of a linear one."""
    if cosine:
        return {"weight": random_directions(classes, dimension, generator)}
    weight, bias = random_linear(classes, dimension, generator)
    return {"weight": weight, "bias": bias}


def random_linear(
    classes: int, dimension: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return a fresh weight (C, D) and bias (C,), uniform within 1 / sqrt(D) as torch's are."""
    bound = dimension**-0.5
    weight = torch.rand((classes, dimension), generator=generator) * 2 - 1
    bias = torch.rand(classes, generator=generator) * 2 - 1
    return weight * bound, bias * bound


def random_directions(classes: int, dimension: int, generator: torch.Generator) -> Tensor:
    """Return a fresh weight (C, D) of unit rows, drawn uniformly and normalised."""
    uniform = torch.rand((classes, dimension), generator=generator) * 2 - 1
    return F.normalize(uniform, dim=1)


def normalised(weight: Tensor, tau: float) -> Tensor:
    """Return a weight (C, D) with row c divided by its norm to the power of tau."""
    norms = torch.linalg.vector_norm(weight, dim=1, keepdim=True).clamp_min(1e-12)
    return weight / norms**tau
