"""Contrastive losses over a batch, its keys and a queue."""

from __future__ import annotations

import torch
from torch import Tensor

from ltpipe.losses.base import at_least_float32


def paco_loss(
    centre_logits: Tensor,
    queries: Tensor,
    keys: Tensor,
    queue: Tensor,
    target: Tensor,
    queue_target: Tensor,
    *,
    alpha: float,
    centre_weight: float,
    temperature: float,
) -> Tensor:
    """Return the mean loss of parametric contrastive learning over the queries.

    Query i is contrasted with the C centres (its centre logits, prior and temperature already in
    them) and with all other queries, all keys and the queue (inner products by `temperature`).
    Positives are its own class's centre, weighing `centre_weight`, and every sample of its class,
    weighing `alpha`; its loss is minus the weighted mean of their log-softmax.

    Cui et al., "Parametric Contrastive Learning", ICCV 2021, eq. 5; the weighted mean is that of
    the released code.

    Args:
        centre_logits: (B, C).
        queries, keys: unit vectors (B, D); `queue` (Q, D), Q may be 0.
        target: (B,) int64, of queries and keys; `queue_target` (Q,).
    """
    batch = len(queries)
    others = at_least_float32(torch.cat([queries, keys, queue]))
    similarity = at_least_float32(queries) @ others.T / temperature
    itself = torch.eye(batch, len(others), dtype=torch.bool, device=queries.device)
    logits = torch.cat(
        [at_least_float32(centre_logits), similarity.masked_fill(itself, -torch.inf)], dim=1
    )
    same = target.unsqueeze(1) == torch.cat([target, target, queue_target])
    centre = torch.nn.functional.one_hot(target, centre_logits.shape[1]).to(logits.dtype)
    samples = (same & ~itself).to(logits.dtype)
    weights = torch.cat([centre_weight * centre, alpha * samples], dim=1)
    log_probabilities = torch.log_softmax(logits, dim=1)
    # The query itself has weight 0 and log-probability minus infinity.
    kept = log_probabilities.masked_fill(weights == 0, 0)
    return -((weights * kept).sum(1) / weights.sum(1)).mean()
