"""Snakemake's `--logger ltpipe`, which profiles/default chooses: what a run looks like."""

from ltpipe.runtime.terminal import LogHandler

__all__ = ["LogHandler"]
