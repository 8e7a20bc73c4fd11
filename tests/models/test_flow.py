"""The flow and its mixture against autograd's Jacobian, zuko and torch's own distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.distributions.transforms import AffineTransform
from torch.utils._python_dispatch import TorchDispatchMode

from ltpipe.models.flow import FlowBatchNorm, FlowMixture, gaussian_log_prob
from ltpipe.training.optimizers import SGD
from ltpipe.utils.errors import InputError
from ltpipe.utils.seeding import generator


def trained(dim: int, clusters: int = 4, **settings) -> FlowMixture:
    """A flow in float64 whose weights and statistics are not those of the start."""
    flow = FlowMixture(dim, clusters, generator=generator(0, "flow"), **settings).double()
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=draws, dtype=torch.float64)
        for layer in (layer for made in flow.mades for layer in made.layers):
            layer.weight *= layer.mask
        for norm in flow.norms:
            if isinstance(norm, FlowBatchNorm):
                norm.running_mean.copy_(torch.randn(dim, generator=draws))
                norm.running_var.copy_(torch.rand(dim, generator=draws) + 0.5)
    return flow.eval()


def samples(number: int, dim: int) -> torch.Tensor:
    draws = torch.Generator().manual_seed(2)
    return torch.randn(number, dim, generator=draws, dtype=torch.float64)


@pytest.mark.parametrize("dim", [2, 5, 7])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_the_log_determinant_is_that_of_autograds_jacobian(dim, batch_norm):
    flow = trained(dim, batch_norm=batch_norm)
    x = samples(4, dim)
    found = flow.transform(x)[1]
    for row, value in zip(x, found, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda r: flow.transform(r[None])[0][0], row)
        expected = torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)


def test_one_layers_jacobian_is_triangular_and_layers_run_in_turn():
    one = trained(5, layers=1, batch_norm=False)
    row = samples(1, 5)[0]
    jacobian = torch.autograd.functional.jacobian(lambda r: one.transform(r[None])[0][0], row)
    assert torch.equal(jacobian.triu(1), torch.zeros(5, 5).double())
    two = trained(5, layers=2, hidden=64, batch_norm=False)
    jacobian = torch.autograd.functional.jacobian(lambda r: two.transform(r[None])[0][0], row)
    assert (jacobian.abs() > 1e-8).all()


def test_an_equal_flow_built_in_zuko_agrees_and_leads_back():
    zuko = pytest.importorskip("zuko")
    flow = trained(6, batch_norm=False)
    parts = []
    for place, made in enumerate(flow.mades):
        layers = made.layers
        copies = []
        for layer in layers:
            copy = zuko.nn.MaskedLinear(adjacency=layer.mask.bool()).double()
            copy.weight.data.copy_(layer.weight)
            copy.bias.data.copy_(layer.bias)
            copies += [copy, torch.nn.ReLU()]
        network = torch.nn.Sequential(*copies[:-1])

        def meta(x, network=network):
            shift, log_scale = network(x).unflatten(-1, (6, 2)).unbind(-1)
            scale = torch.exp(-log_scale)
            return zuko.transforms.DependentTransform(AffineTransform(-shift * scale, scale), 1)

        if place:
            parts.append(zuko.transforms.PermutationTransform(torch.arange(5, -1, -1)))
        parts.append(zuko.transforms.AutoregressiveTransform(meta, passes=6))
    whole = zuko.transforms.ComposedTransform(*parts)
    x = samples(9, 6)
    latent, log_det = whole.call_and_ladj(x)
    found = flow.transform(x)
    torch.testing.assert_close(found[0], latent, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1], log_det, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(whole.inv(found[0]), x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dim", "dtype"), [(5, torch.float64), (2048, torch.float32)])
def test_the_mixture_is_torchs_own(dim, dtype):
    flow = FlowMixture(dim, 7, layers=1, hidden=16, batch_norm=False)
    flow = flow.to(dtype).eval()
    x = samples(6, dim).to(dtype)
    output = flow(x)
    log_det = flow.transform(x)[1]
    mixture = MixtureSameFamily(
        Categorical(torch.ones(7).double()),
        Independent(Normal(flow.centres.double(), 1.0), 1),
    )
    expected = mixture.log_prob(output.latent.double()) + log_det.double()
    torch.testing.assert_close(output.log_likelihood.double(), expected, rtol=1e-4, atol=1e-6)
    each = Independent(Normal(flow.centres.double(), 1.0), 1)
    for b in range(6):
        expected = each.log_prob(output.latent[b].double()) + log_det[b].double()
        torch.testing.assert_close(
            output.cluster_log_prob[b].double(), expected, rtol=1e-4, atol=1e-6
        )


def test_centres_keep_their_distance_in_every_dimension():
    for dim in (64, 2048):
        centres = FlowMixture(dim, 200, hidden=4, generator=generator(0, "c")).centres
        assert centres.std().item() == pytest.approx(math.sqrt(5.12 / dim), rel=0.02)
    assert math.sqrt(5.12 / 2048) == 0.05


def test_running_statistics_over_batches_by_loops():
    norm = FlowBatchNorm(2).double()
    mean, var = np.zeros(2), np.ones(2)
    for scale in (1.0, 3.0, 0.5):
        batch = scale * samples(6, 2) + scale
        norm(batch)
        mean = 0.9 * mean + 0.1 * batch.numpy().mean(0)
        var = 0.9 * var + 0.1 * batch.numpy().var(0, ddof=1)
    np.testing.assert_allclose(norm.running_mean.numpy(), mean)
    np.testing.assert_allclose(norm.running_var.numpy(), var)


def test_gradients_by_finite_differences_also_through_batch_statistics():
    flow = trained(4, 3, hidden=5).train()
    names = [name for name, _ in flow.named_parameters()]

    masks = {
        f"mades.{place}.layers.{number}.weight": layer.mask
        for place, made in enumerate(flow.mades)
        for number, layer in enumerate(made.layers)
    }

    def whole(x, *values):
        masked = {n: v * masks.get(n, 1) for n, v in zip(names, values, strict=True)}
        return torch.func.functional_call(flow, masked, (x,))

    x = samples(5, 4).requires_grad_()
    values = [value.detach().requires_grad_() for value in flow.parameters()]
    assert torch.autograd.gradcheck(lambda *inputs: tuple(whole(*inputs)), (x, *values))


def test_batch_normalisation_by_loops():
    norm = FlowBatchNorm(3).double()
    with torch.no_grad():
        norm.log_gamma.copy_(torch.tensor([0.1, -0.2, 0.3]))
        norm.beta.copy_(torch.tensor([1.0, 2.0, 3.0]))
    x = samples(5, 3)
    found, log_det = norm(x)
    expected_det = 0.0
    for d in range(3):
        column = x[:, d].numpy()
        mean, var = column.mean(), column.var(ddof=1)
        gamma = np.exp(norm.log_gamma[d].item())
        expected = gamma * (column - mean) / np.sqrt(var + 1e-5) + norm.beta[d].item()
        np.testing.assert_allclose(found[:, d].detach().numpy(), expected)
        expected_det += np.log(gamma) - 0.5 * np.log(var + 1e-5)
        assert norm.running_mean[d].item() == pytest.approx(0.1 * mean)
        assert norm.running_var[d].item() == pytest.approx(0.9 + 0.1 * var)
    assert log_det.item() == pytest.approx(expected_det)
    norm.eval()
    again = norm.running_mean.clone()
    norm(x)
    assert torch.equal(norm.running_mean, again)


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation gives."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, torch.Tensor):
                self.numbers = max(self.numbers, value.numel())
        return result


def test_masked_weights_stay_zero_and_the_others_learn():
    flow = FlowMixture(5, 3, hidden=6, generator=generator(0, "flow"))
    before = [layer.weight.detach().clone() for made in flow.mades for layer in made.layers]
    flow(torch.randn(16, 5, generator=generator(1, "x"))).log_likelihood.sum().backward()
    SGD(flow.parameters()).step(0.1)
    layers = [layer for made in flow.mades for layer in made.layers]
    for layer, old in zip(layers, before, strict=True):
        masked = layer.mask == 0
        assert masked.any()
        assert (layer.weight[masked] == 0).all()
        assert (layer.weight != old).any()


def test_bfloat16_products_change_little_and_leave_parameters_alone():
    flow = FlowMixture(64, 20, generator=generator(0, "flow"))
    x = torch.randn(200, 64, generator=generator(1, "x"))
    exact = flow(x)
    flow.compute_in(torch.bfloat16)
    rounded = flow(x)
    assert rounded.latent.dtype == torch.float32
    assert not torch.equal(rounded.latent, exact.latent)
    torch.testing.assert_close(rounded.latent, exact.latent, rtol=0.02, atol=0.02)
    rounded.log_likelihood.sum().backward()
    for parameter in flow.parameters():
        assert parameter.dtype == parameter.grad.dtype == torch.float32
    flow.compute_in(torch.float32)
    assert torch.equal(flow(x).latent, exact.latent)


def test_no_tensor_of_samples_by_clusters_by_dimensions_is_made():
    flow = FlowMixture(32, 40, hidden=32)
    x = torch.randn(50, 32)
    with Largest() as largest:
        output = flow(x)
        (output.log_likelihood.sum() + output.cluster_log_prob.softmax(1).square().sum()).backward()
    assert 50 * 40 <= largest.numbers < 50 * 40 * 32 / 8


def test_the_generator_decides_and_the_global_streams_are_left_alone(monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    before = torch.random.get_rng_state()
    one, two = (FlowMixture(4, 3, generator=generator(5, "f")) for _ in range(2))
    other = FlowMixture(4, 3, generator=generator(6, "f"))
    assert torch.equal(before, torch.random.get_rng_state())
    assert not seeded
    assert all(map(torch.equal, one.state_dict().values(), two.state_dict().values()))
    assert not torch.equal(one.centres, other.centres)


def test_a_flow_comes_back_whole_from_its_state_dict():
    flow = trained(4, 3)
    other = FlowMixture(4, 3, generator=generator(6, "f")).double()
    other.load_state_dict(flow.state_dict())
    x = samples(3, 4)
    assert all(map(torch.equal, other.eval()(x), flow(x)))


def test_float32_keeps_the_posterior_of_2048_dimensions():
    centres = FlowMixture(2048, 50, hidden=4, generator=generator(0, "c")).centres
    values = samples(8, 2048).float() + centres[:8]
    found = gaussian_log_prob(values, centres).softmax(1)
    difference = values.double().unsqueeze(1) - centres.double()
    expected = (-0.5 * difference.square().sum(2)).softmax(1)
    torch.testing.assert_close(found.double(), expected, rtol=5e-3, atol=1e-6)


def test_half_precision_is_raised_before_squares_are_taken():
    values, centres = torch.randn(3, 64), torch.randn(5, 64)
    half = gaussian_log_prob(values.bfloat16(), centres.bfloat16())
    assert half.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        found = gaussian_log_prob(values, centres)
    difference = values.double().unsqueeze(1) - centres.double()
    expected = -0.5 * (difference.square().sum(2) + 64 * math.log(2 * math.pi))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sizes", [{"dim": 1}, {"num_clusters": 0}, {"layers": 0}, {"hidden": 0}])
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(InputError, match="a flow needs"):
        FlowMixture(**{"dim": 4, "num_clusters": 3, **sizes})
