import numpy as np
import pytest
import torch

from ltpipe.data.sampling import epoch_order
from ltpipe.utils.errors import InputError

COUNTS = np.array([4000, 600, 0, 50, 5])
LABELS = torch.from_numpy(
    np.random.default_rng(0).permutation(np.repeat(np.arange(len(COUNTS)), COUNTS))
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_shuffle_is_a_permutation():
    order = epoch_order(LABELS, 5, "shuffle", generator())
    assert order.dtype == torch.int64
    assert torch.equal(order.sort().values, torch.arange(len(LABELS)))
    assert not torch.equal(order, torch.arange(len(LABELS)))


# Probability of a class is its size times the weight of one of its samples.
WEIGHT = {
    "balanced": lambda n: 1 / n,
    "sqrt": lambda n: n**-0.5,
    "effective": lambda n: (1 - 0.9999) / (1 - 0.9999**n),
    "reversed": lambda n: n**-2.0,
}


@pytest.mark.parametrize("kind", WEIGHT)
def test_class_frequencies(kind):
    expected = np.array([n * WEIGHT[kind](n) if n else 0.0 for n in COUNTS.astype(float)])
    expected /= expected.sum()
    drawn = torch.cat([epoch_order(LABELS, 5, kind, generator(s)) for s in range(20)])
    observed = np.bincount(LABELS[drawn].numpy(), minlength=5) / len(drawn)
    deviation = np.sqrt(expected * (1 - expected) / len(drawn))
    assert (np.abs(observed - expected) <= 4 * deviation).all()


@pytest.mark.parametrize("kind", WEIGHT)
def test_samples_of_a_class_are_equally_likely(kind):
    drawn = torch.cat([epoch_order(LABELS, 5, kind, generator(s)) for s in range(200)])
    members = torch.nonzero(LABELS == 4).flatten()
    hits = torch.bincount(drawn, minlength=len(LABELS))[members].double()
    chi_square = ((hits - hits.mean()) ** 2 / hits.mean()).sum()
    assert chi_square < 25  # 4 degrees of freedom: exceeded with probability 5e-5
    assert (hits > 0).all()


@pytest.mark.parametrize("kind", ["shuffle", *WEIGHT])
def test_order_depends_on_the_generator_only(kind):
    torch.manual_seed(1)
    first = epoch_order(LABELS, 5, kind, generator(7))
    torch.manual_seed(2)
    assert torch.equal(first, epoch_order(LABELS, 5, kind, generator(7)))
    assert not torch.equal(first, epoch_order(LABELS, 5, kind, generator(8)))
    assert len(first) == len(LABELS)


def test_reversed_sampling_draws_classes_by_the_inverse_of_their_size():
    # BBN's sampler: of classes with 5000, 500 and 50 samples, 1 : 10 : 100.
    labels = torch.arange(3).repeat_interleave(torch.tensor([5000, 500, 50]))
    drawn = torch.cat([epoch_order(labels, 3, "reversed", generator(s)) for s in range(10)])
    expected = np.array([1, 10, 100]) / 111
    observed = np.bincount(labels[drawn].numpy(), minlength=3) / len(drawn)
    deviation = np.sqrt(expected * (1 - expected) / len(drawn))
    assert (np.abs(observed - expected) <= 4 * deviation).all()


def test_unknown_sampler():
    with pytest.raises(InputError, match="did you mean 'balanced'"):
        epoch_order(LABELS, 5, "balance", generator())
