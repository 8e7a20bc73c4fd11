"""Data sets, long-tailed subsets, image batches and samplers."""
