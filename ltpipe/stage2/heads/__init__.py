"""Heads on cached features from 2021 to 2026, and plain yardsticks, of one file each."""
