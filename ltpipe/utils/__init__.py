"""The ground: errors, files, seeds, progress, memory. Knows nothing of the rest."""
