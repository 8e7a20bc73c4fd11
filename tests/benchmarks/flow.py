"""Measure a training step of DLSA's filter beside the usual form of its mixture.

python tests/benchmarks/flow.py [--quick | --epoch]

The product form needs one matrix product for all distances to centres, lays masks on the weights
once, and runs the masked networks in bfloat16 where that pays. The peer makes a (B, K, D)
difference, lays masks on in every step, in float32, and takes torch's SGD, as published codes do.
"""

from __future__ import annotations

import argparse
import functools
import time
from typing import NamedTuple

import peers
import torch
from measure import in_own_process, status_megabytes
from torch import nn

from ltpipe.models.flow import FlowMixture
from ltpipe.stage2.core.settings import FlowFilter
from ltpipe.stage2.dlsa.filter import train_flow
from ltpipe.stage2.dlsa.losses import BalanceLoss, likelihood_weights, weighted_likelihood_loss
from ltpipe.training.devices import precision
from ltpipe.training.optimizers import SGD
from ltpipe.utils.memory import keep_freed_memory
from ltpipe.utils.seeding import generator

DIMENSION, CLUSTERS, BATCH, CLASSES = 2048, 500, 256, 1000
RATE = 0.01
IMAGES = 115_846
STEPS = {"product": 8, "broadcast": 3}


class Steps(NamedTuple):
    """The seconds of the fastest step, and the peak memory in MB beside what was there before."""

    seconds: float
    megabytes: float


class Comparison(NamedTuple):
    """What `filter_step` finds of the product and its peer."""

    product: Steps
    peer: Steps

    @property
    def speed(self) -> float:
        """How many product steps a peer's step takes."""
        return self.peer.seconds / self.product.seconds

    @property
    def memory(self) -> float:
        """The peer's peak memory over the product's."""
        return self.peer.megabytes / self.product.megabytes


def filter_step(quick: bool) -> Comparison:
    """Time both forms in turn; each in a process of its own, so that peaks of memory are its own.

    The fastest step and the largest peak of all rounds count.
    """
    rounds: dict[str, list[Steps]] = {form: [] for form in STEPS}
    for _ in range(1 if quick else 3):
        for form, found in rounds.items():
            found.append(_in_own_process(form))
    return Comparison(
        *(
            Steps(min(s.seconds for s in found), max(s.megabytes for s in found))
            for found in rounds.values()
        )
    )


def _in_own_process(form: str) -> Steps:
    threads = str(torch.get_num_threads())
    printed = in_own_process("flow.py", "--form", form, "--threads", threads)
    return Steps(*map(float, printed.split()))


def take_steps(form: str) -> Steps:
    """Run the steps of one form in this process."""
    if form == "broadcast":
        flow: nn.Module = peers.BroadcastFlow(DIMENSION, CLUSTERS)
        theirs = torch.optim.SGD(flow.parameters(), RATE)

        def step() -> None:
            theirs.step()
            theirs.zero_grad()
    else:
        keep_freed_memory()
        mixture = FlowMixture(DIMENSION, CLUSTERS, generator=generator(0, "flow"))
        mixture.compute_in(precision("auto", torch.device("cpu"), "products"))
        flow, step = mixture, functools.partial(SGD(mixture.parameters()).step, RATE)
    balance = BalanceLoss(CLUSTERS)
    x = torch.randn(BATCH, DIMENSION, generator=generator(0, "x"))
    target = torch.randint(CLASSES, (BATCH,), generator=generator(0, "y"))
    weights = likelihood_weights([10] * CLASSES)
    before = status_megabytes("VmRSS")
    times = []
    for _ in range(STEPS[form]):
        started = time.perf_counter()
        output = flow(x)
        value = weighted_likelihood_loss(output.log_likelihood, target, weights)
        (value + balance(output.cluster_log_prob.softmax(1))).backward()
        step()
        times.append(time.perf_counter() - started)
    return Steps(min(times), status_megabytes("VmHWM") - before)


def one_epoch() -> Steps:
    """Train a filter for one epoch on features of ImageNet-LT's size.

    Classes are equally large: pairs of classes are drawn uniformly, whatever their sizes.
    """
    labels = torch.arange(IMAGES) % CLASSES
    features = torch.randn(IMAGES, DIMENSION, generator=generator(0, "x"))
    keep_freed_memory()
    flow = FlowMixture(DIMENSION, CLUSTERS, generator=generator(0, "flow"))
    before = status_megabytes("VmRSS")
    started = time.perf_counter()
    train_flow(flow, features, labels, CLASSES, FlowFilter(epochs=1), seed=0, block=1)
    return Steps(time.perf_counter() - started, status_megabytes("VmHWM") - before)


def main() -> None:
    """Print the ratios, or one form's seconds and megabytes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--form", choices=STEPS, help="run this form alone, in this process")
    parser.add_argument("--threads", type=int, default=min(2, torch.get_num_threads()))
    parser.add_argument("--epoch", action="store_true", help="one epoch at ImageNet-LT's size")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.form:
        print(*take_steps(options.form))
        return
    if options.epoch:
        epoch = one_epoch()
        print(
            f"one epoch, {IMAGES:,} x {DIMENSION}, {CLUSTERS} clusters, batches of 1,024 pairs: "
            f"{epoch.seconds:.0f} s, {epoch.megabytes:,.0f} MB beside the features' "
            f"{IMAGES * DIMENSION * 4 / 1e6:,.0f} MB"
        )
        return
    found = filter_step(options.quick)
    for form, steps in zip(STEPS, found, strict=True):
        print(f"{form:<12}{steps.seconds * 1000:>10,.0f} ms{steps.megabytes:>10,.0f} MB")
    print(f"{'ratio':<12}{found.speed:>10.1f}   {found.memory:>10.1f}")


if __name__ == "__main__":
    main()
