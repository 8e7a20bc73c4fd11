"""Short results that one job makes: each is an artifact of its own, the process is common."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ltpipe.plan.layout import ArtifactSpec

# Their specs stand in the job's line, which the system limits to 128 KiB.
_MAX_TEXT = 80_000


def batches(
    artifacts: Iterable[ArtifactSpec], size: int, is_there: Callable[[ArtifactSpec], bool]
) -> list[list[ArtifactSpec]]:
    """Return the results of stage two that are not there, up to `size` of the same inputs together.

    Those of a size of one are left to jobs of their own.
    """
    groups: dict[tuple[tuple[str, str], ...], list[list[ArtifactSpec]]] = {}
    for artifact in artifacts:
        if artifact.kind != "stage2" or is_there(artifact):
            continue
        inputs = {role: made.folder for role, made in artifact.inputs.items()}
        packed = artifact.spec.get("locations", {}).get("packed", "")
        parts = groups.setdefault(tuple(sorted({**inputs, "": packed}.items())), [[]])
        text = sum(len(one.spec_text) for one in [*parts[-1], artifact])
        if len(parts[-1]) >= size or text > _MAX_TEXT:
            parts.append([])
        parts[-1].append(artifact)
    return [part for parts in groups.values() for part in parts if len(part) > 1]
