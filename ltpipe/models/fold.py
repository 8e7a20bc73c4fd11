"""BatchNorm folded into the convolutions before it, for faster inference."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any, TypeVar

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Network = TypeVar("Network", bound=nn.Module)


class _Tracer(fx.Tracer):
    """Follows `features`, and only into modules that hold a BatchNorm; all else is opaque."""

    traced_func_name = "features"

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # One with an activation in it is a class of its own, and still one step.
        inside = any(isinstance(module, nn.BatchNorm2d) for module in m.modules())
        is_norm = isinstance(m, nn.BatchNorm2d)
        return is_norm or not inside or super().is_leaf_module(m, module_qualified_name)


def fold_batchnorm(network: Network) -> Network:
    """Return a copy in evaluation mode with every foldable BatchNorm2d folded away.

    A BatchNorm is foldable where its input is a Conv2d's output that nothing else reads, found
    in the traced data flow: one behind SimAM stays. The copy's outputs and features equal those
    of `network` in evaluation mode up to rounding; it is not meant to be trained. What can't be
    traced, because its data flow depends on the data, keeps its BatchNorm.
    """
    folded = copy.deepcopy(network).eval()
    if not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules()):
        return folded
    try:
        graph = _Tracer().trace(folded)
    except (fx.proxy.TraceError, TypeError, ValueError, RuntimeError):
        return folded
    modules: dict[Any, nn.Module] = dict(folded.named_modules())
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        if node.op != "call_module" or node.args[0].op != "call_module":
            continue
        producer = node.args[0]
        conv, norm = modules[producer.target], modules[node.target]
        alone = len(producer.users) == 1 and calls[producer.target] == calls[node.target] == 1
        if alone and isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            folded.set_submodule(producer.target, fuse_conv_bn_eval(conv, norm))
            # timm's normalisation holds the activation after it.
            folded.set_submodule(node.target, getattr(norm, "act", nn.Identity()))
    return folded
