"""CWS's clustering: small cases by hand, and batches against loops in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ltpipe.stage1.cws.clustering import Clustering, shells


def on_a_line(*places):
    """Features (B, 1) at these places."""
    return torch.tensor(places, dtype=torch.float32).unsqueeze(1)


def labels_of(*labels):
    return torch.tensor(labels)


@pytest.mark.parametrize(
    ("distances", "number", "expected"),
    [
        # Width 1: intervals (0, 1], (1, 2], (2, 3], and 0 goes with the first.
        ([0.0, 1.0, 2.0, 3.0], 3, [0, 0, 1, 2]),
        ([0.5, 1.5, 2.5, 3.0], 3, [0, 1, 2, 2]),
        # Width 1/2; just above a bound is the next interval.
        ([0.5, 0.5 + 1e-6, 1.0, 1.0 + 1e-6, 1.5, 2.0], 4, [0, 1, 1, 2, 2, 3]),
        ([0.0, 1.0, 3.0], 1, [0, 0, 0]),
        ([0.0, 0.0], 5, [0, 0]),
    ],
)
def test_intervals_hold_their_upper_bound(distances, number, expected):
    values = torch.tensor(distances)
    largest = values.max().expand(len(values))
    found = shells(values, largest, torch.full((len(values),), number))
    assert found.tolist() == expected


def test_the_farthest_sample_is_in_the_last_interval_whatever_its_distance():
    distances = torch.rand(5000, generator=torch.Generator().manual_seed(0)) + 1e-3
    for number in (1, 2, 3, 5, 7, 50):
        numbers = torch.full((5000,), number)
        assert (shells(distances, distances, numbers) == number - 1).all()


def test_a_first_batch_by_hand():
    clustering = Clustering([3, 2], 1)
    # Class 0 at -3, 1, 2, 4: mean 1, distances 4, 0, 1, 3, width 4/3. Class 1 alone: distance 0.
    features = on_a_line(-3, 1, 9, 2, 4)
    found = clustering.assign(features, labels_of(0, 0, 1, 0, 0))
    assert found.tolist() == [2, 0, 3, 0, 2]
    assert clustering.centres.flatten().tolist() == [1, 9]
    assert clustering.restart().tolist() == [2, 0, 2, 1, 0]
    assert clustering.restart().tolist() == [0, 0, 0, 0, 0]


@pytest.mark.parametrize(("centre", "moved"), [("smooth", 0.9 * 4 + 0.1 * 10), ("printed", 9.4)])
def test_both_conventions_of_the_moving_average(centre, moved):
    clustering = Clustering([2, 2], 1, centre=centre, alpha=0.9)
    clustering.assign(on_a_line(3, 5), labels_of(0, 0))
    assert clustering.centres.flatten().tolist() == [4, 0]
    # Distances are to the centre that has moved already.
    found = clustering.assign(on_a_line(8, 12, 7), labels_of(0, 0, 1))
    np.testing.assert_allclose(clustering.centres.flatten(), [moved, 7], rtol=1e-6)
    distances = np.abs(np.array([8, 12]) - moved)
    expected = [0 if distances[0] <= distances[1] / 2 else 1, 1, 2]
    assert found.tolist() == expected


def test_a_single_sample_is_first_in_the_centre_and_then_the_farthest():
    clustering = Clustering([3], 2)
    assert clustering.assign(torch.ones(1, 2), labels_of(0)).tolist() == [0]
    assert clustering.assign(torch.zeros(1, 2), labels_of(0)).tolist() == [2]


def test_a_class_that_is_absent_stays_as_it_is():
    clustering = Clustering([2, 2], 1, scope="running-max")
    clustering.assign(on_a_line(0, 2, 5), labels_of(0, 0, 1))
    before = clustering.centres[0].clone(), clustering.radii[0].clone()
    clustering.assign(on_a_line(6, 8), labels_of(1, 1))
    assert torch.equal(clustering.centres[0], before[0])
    assert torch.equal(clustering.radii[0], before[1])
    assert clustering.seen.tolist() == [True, True]


def test_the_moving_maximum_falls_by_alpha():
    clustering = Clustering([4], 1, alpha=0.5, scope="running-max")
    clustering.assign(on_a_line(-4, 4), labels_of(0, 0))
    assert clustering.radii.tolist() == [4]
    # Centre 0, distances 1: of a limit of 2 that is the second quarter, at its upper bound.
    assert clustering.assign(on_a_line(-1, 1), labels_of(0, 0)).tolist() == [1, 1]
    assert clustering.radii.tolist() == [2]
    assert clustering.assign(on_a_line(-8, 8), labels_of(0, 0)).tolist() == [3, 3]
    assert clustering.radii.tolist() == [8]


def test_the_epochs_centres_are_the_means():
    clustering = Clustering([2], 1, alpha=0.99, scope="epoch")
    clustering.assign(on_a_line(0, 2), labels_of(0, 0))
    clustering.assign(on_a_line(10, 14), labels_of(0, 0))
    assert clustering.centres.tolist() == [[12]]


def test_unit_features_ignore_length():
    clustering = Clustering([2, 1], 2, unit=True)
    features = torch.tensor([[3.0, 0.0], [0.0, 5.0], [0.1, 0.0]])
    clustering.assign(features, labels_of(0, 0, 1))
    np.testing.assert_allclose(clustering.centres, [[0.5, 0.5], [1, 0]], rtol=1e-6)


def test_what_is_no_number_gives_an_id_of_the_class():
    clustering = Clustering([3, 2], 1)
    features = torch.tensor([[math.nan], [math.inf], [1.0]])
    found = clustering.assign(features, labels_of(0, 1, 1))
    assert found[0] in (0, 1, 2)
    assert all(label in (3, 4) for label in found[1:])


def test_gradients_stop_at_the_clustering():
    features = torch.randn(6, 3, requires_grad=True)
    clustering = Clustering([2], 3)
    clustering.assign(features, torch.zeros(6, dtype=torch.int64))
    assert not clustering.centres.requires_grad


def loop_oracle(batches, subclasses, centre, alpha, scope):
    """The paper's steps one sample at a time, in float64."""
    centres, radii = {}, {}
    offsets = [sum(subclasses[:label]) for label in range(len(subclasses))]
    ids = []
    for features, labels in batches:
        given = {}
        for label in sorted(set(labels)):
            members = [i for i, other in enumerate(labels) if other == label]
            mean = sum(features[i] for i in members) / len(members)
            if label not in centres or scope == "epoch":
                centres[label] = mean
            elif centre == "smooth":
                centres[label] = alpha * centres[label] + (1 - alpha) * mean
            else:
                centres[label] = alpha * mean + (1 - alpha) * centres[label]
            distances = [math.sqrt(((features[i] - centres[label]) ** 2).sum()) for i in members]
            largest = max(distances)
            if scope == "running-max" and label in radii:
                largest = max(largest, alpha * radii[label])
            radii[label] = largest
            width = largest / subclasses[label]
            for i, distance in zip(members, distances, strict=True):
                shell = 0
                while shell < subclasses[label] - 1 and distance > (shell + 1) * width:
                    shell += 1
                given[i] = offsets[label] + shell
        ids.append([given[i] for i in range(len(labels))])
    return ids, centres


@pytest.mark.parametrize("centre", ["smooth", "printed"])
@pytest.mark.parametrize("scope", ["batch", "running-max", "epoch"])
def test_batches_against_loops(centre, scope):
    stream = np.random.default_rng(3)
    subclasses = [5, 3, 2, 1, 4, 1, 7]
    batches = []
    for size in (40, 1, 64, 17, 64, 3):
        labels = stream.choice(7, size, p=[0.4, 0.2, 0.15, 0.1, 0.1, 0.04, 0.01])
        batches.append((stream.normal(size=(size, 4)) + labels[:, None], labels.tolist()))
    expected, centres = loop_oracle(batches, subclasses, centre, 0.8, scope)
    clustering = Clustering(
        subclasses, 4, centre=centre, alpha=0.8, scope=scope, dtype=torch.float64
    )
    for (features, labels), ids in zip(batches, expected, strict=True):
        found = clustering.assign(torch.from_numpy(features), torch.tensor(labels))
        assert found.tolist() == ids
    for label, place in centres.items():
        np.testing.assert_allclose(clustering.centres[label], place, rtol=1e-12)
    everything = [identity for ids in expected for identity in ids]
    counted = np.bincount(everything, minlength=sum(subclasses))
    assert clustering.restart().tolist() == counted.tolist()
    assert len(set(everything)) > 15
