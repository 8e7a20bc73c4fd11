"""Specs: what defines an artifact, as JSON that jobs and manifests carry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ltpipe.config.base import digest

# What of a spec is no part of the digest: the folder's other parts say it, or it says only where
# something lies.
_BESIDE_THE_DIGEST = ("kind", "seed", "locations")


def digest_of(spec: Mapping[str, Any]) -> str:
    """Return the 10 hex digits that name the artifact of `spec`."""
    return digest({key: value for key, value in spec.items() if key not in _BESIDE_THE_DIGEST})


def with_locations(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return `spec` with what says where files lie put back into the settings that name them."""
    whole = dict(spec)
    for section, located in whole.pop("locations", {}).items():
        if section in whole:
            whole[section] = {**whole[section], **located}
    return whole
