import numpy as np
import pytest
import torch

from ltpipe.data.sampling import Cycles, epoch_order
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


def cycled(epochs, per_class=1, labels=LABELS, seed=0):
    cycles = Cycles(labels, 5, per_class)
    return [cycles.epoch(generator(100 * seed + epoch)) for epoch in range(epochs)]


@pytest.mark.parametrize("per_class", [1, 4, 7])
def test_cycles_come_to_every_sample_of_a_class_before_any_twice(per_class):
    drawn = torch.cat(cycled(6, per_class))
    for label, count in enumerate(COUNTS):
        mine = drawn[LABELS[drawn] == label]
        if not count:
            assert not len(mine)
            continue
        # Of the last run of an epoch, what lies beyond its end is left out.
        hits = torch.bincount(mine, minlength=len(LABELS))[label == LABELS]
        lost = 0 if per_class == 1 else 6 * per_class
        assert hits.max() - hits.min() <= 1 + -(-lost // count)
        if per_class == 1:
            rounds = mine[: len(mine) // count * count].view(-1, count)
            assert (rounds.sort(1).values == rounds.sort(1).values[:1]).all()
            assert not len(rounds) > 1 or not torch.equal(rounds[0], rounds[1])


@pytest.mark.parametrize("per_class", [1, 4])
def test_cycles_give_classes_their_turns(per_class):
    for order in cycled(3, per_class):
        assert order.shape == LABELS.shape
        runs = LABELS[order][: len(LABELS) // per_class * per_class].view(-1, per_class)
        assert (runs == runs[:, :1]).all()
        counts = torch.bincount(runs[:, 0], minlength=5)
        assert counts[2] == 0
        assert counts[[0, 1, 3, 4]].max() - counts[[0, 1, 3, 4]].min() <= 2


def test_cycles_depend_on_the_generators_only():
    first, again, other = cycled(2), cycled(2), cycled(2, seed=1)
    for ours, same, different in zip(first, again, other, strict=True):
        assert torch.equal(ours, same)
        assert not torch.equal(ours, different)


def test_cycles_leave_few_samples_of_a_large_class_undrawn():
    """Draws of a share s of a class: with replacement, exp(-s) of it never comes."""
    labels = torch.from_numpy(np.repeat([0, 1, 2, 3, 4], [1280, 118, 62, 29, 19]))
    orders = {
        "balanced": [epoch_order(labels, 5, "balanced", generator(e), 4) for e in range(3)],
        "cycle": cycled(3, 4, labels),
    }
    undrawn = {}
    for kind, epochs in orders.items():
        hits = torch.bincount(torch.cat(epochs), minlength=len(labels))[labels == 0]
        undrawn[kind] = float((hits == 0).double().mean())
    share = 3 * len(labels) / 5 / 1280
    assert undrawn["cycle"] == pytest.approx(1 - share, abs=0.01)
    assert undrawn["balanced"] == pytest.approx(np.exp(-share), abs=0.05)
