"""From an experiment to its artifacts: stages, identities, fingerprints, availability."""
