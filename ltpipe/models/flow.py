"""A masked autoregressive flow whose latent density is a mixture of Gaussians.

Papamakarios et al., "Masked Autoregressive Flow for Density Estimation", NeurIPS 2017; the mixture
and its use are those of Xu et al., "Constructing Balance from Imbalance for Long-tailed Image
Recognition" (DLSA), ECCV 2022, eqs. 1 to 5.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ltpipe.models.masked import MaskedNetwork
from ltpipe.utils.errors import InputError

# Squared distances between centres grow with 2 D spread ** 2; this keeps them at what the released
# spread of 0.05 gives at 2,048 dimensions.
_SPREAD = 5.12


class FlowOutput(NamedTuple):
    """What a flow says of B samples.

    `latent` (B, D); `cluster_log_prob` (B, K), the log density log p(x | k) of the sample under
    each cluster; `log_likelihood` (B,), that of the mixture.
    """

    latent: Tensor
    cluster_log_prob: Tensor
    log_likelihood: Tensor


class FlowMixture(nn.Module):
    """Masked autoregressive layers under K Gaussians of fixed random centres and equal weight.

    A layer maps x to ``(x - m) exp(-a)``, shift m and log-scale a coming from a MADE; the order of
    dimensions is reversed between layers, and a batch normalisation may follow each. Centres are
    drawn once from N(0, spread ** 2) and are kept in the state dict; covariances are the identity.

    Of nflows the masked network alone is used, see `MaskedNetwork`; the log-determinant is -sum a.
    Its own affine layer is left aside: there the scale is a softplus, which starts near 0.69 and
    not at 1.

    Args:
        dim: D.
        num_clusters: K.
        layers: number of autoregressive layers.
        hidden: width of the MADEs' two hidden layers; D unless given.
        spread: standard deviation of the centres' coordinates; sqrt(5.12 / D) unless given, which
            is the released 0.05 at D = 2,048.
        batch_norm: whether a `FlowBatchNorm` follows each layer.
        generator: a CPU generator that weights and centres are drawn from; torch's global stream
            unless given.

    Raises:
        InputError: a size is below 1, or D below 2.
    """

    centres: Tensor

    def __init__(
        self,
        dim: int,
        num_clusters: int,
        *,
        layers: int = 2,
        hidden: int | None = None,
        spread: float | None = None,
        batch_norm: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        hidden = dim if hidden is None else hidden
        if dim < 2 or min(num_clusters, layers, hidden) < 1:
            raise InputError(
                "a flow needs at least two dimensions, a cluster, a layer and a hidden unit; it "
                f"was given {dim}, {num_clusters}, {layers} and {hidden}"
            )
        self.dim = dim
        seed = int(torch.randint(2**62, (), generator=generator))
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would reseed the devices' streams too, which are not forked.
            torch.default_generator.manual_seed(seed)
            self.mades = nn.ModuleList(MaskedNetwork(dim, hidden) for _ in range(layers))
            scale = math.sqrt(_SPREAD / dim) if spread is None else spread
            self.register_buffer("centres", scale * torch.randn(num_clusters, dim))
        self.norms = nn.ModuleList(
            FlowBatchNorm(dim) if batch_norm else nn.Identity() for _ in range(layers)
        )

    def forward(self, x: Tensor) -> FlowOutput:
        """Return latent vectors and log densities of x (B, D)."""
        latent, log_det = self.transform(x)
        cluster_log_prob = gaussian_log_prob(latent, self.centres) + log_det.unsqueeze(1)
        log_likelihood = cluster_log_prob.logsumexp(1) - math.log(len(self.centres))
        return FlowOutput(latent, cluster_log_prob, log_likelihood)

    def compute_in(self, dtype: torch.dtype) -> None:
        """Let the masked networks compute in `dtype`; densities are never below float32."""
        for module in self.modules():
            if isinstance(module, MaskedNetwork):
                module.compute_in(dtype)

    def transform(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the latent vectors (B, D) of x (B, D) and log |det dz / dx| (B,)."""
        log_det = x.new_zeros(x.shape[0])
        for place, (made, norm) in enumerate(zip(self.mades, self.norms, strict=True)):
            if place:
                x = x.flip(1)
            shift, log_scale = made(x)
            x = (x - shift) * torch.exp(-log_scale)
            log_det = log_det - log_scale.sum(1)
            if isinstance(norm, FlowBatchNorm):
                x, of_norm = norm(x)
                log_det = log_det + of_norm
        return x, log_det


class FlowBatchNorm(nn.Module):
    """Batch normalisation as a flow layer: ``exp(g) (x - mean) / sqrt(var + eps) + b``.

    Statistics are the batch's in training (the unbiased variance; gradients flow through both) and
    running averages, 0.9 old and 0.1 new, in evaluation.

    Dinh et al., "Density Estimation Using Real NVP", ICLR 2017, section 3.7.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, dim: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.log_gamma = nn.Parameter(torch.zeros(dim))
        self.beta = nn.Parameter(torch.zeros(dim))
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what x (B, D) becomes and the log-determinant, one number for all samples.

        A training batch of one sample has no variance and is normalised as in evaluation.
        """
        if self.training and len(x) > 1:
            mean, var = x.mean(0), x.var(0)
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var, self.momentum)
        else:
            mean, var = self.running_mean, self.running_var
        scale = self.log_gamma - 0.5 * torch.log(var + self.eps)
        return (x - mean) * scale.exp() + self.beta, scale.sum()


def gaussian_log_prob(values: Tensor, centres: Tensor) -> Tensor:
    """Return log N(u | mu_k, I), (B, K), of values (B, D) and centres (K, D), in one product.

    No (B, K, D) tensor is made, here or in the backward pass. Half precision is raised to float32:
    the squares are far larger than their differences.
    """
    dtype = torch.promote_types(values.dtype, torch.float32)
    with torch.autocast(values.device.type, enabled=False):
        values, centres = values.to(dtype), centres.to(dtype)
        norms = values.square().sum(1, keepdim=True) + centres.square().sum(1)
        squared = torch.addmm(norms, values, centres.T, alpha=-2)
        return -0.5 * (squared + values.shape[1] * math.log(2 * math.pi))
