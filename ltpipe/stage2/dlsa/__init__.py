"""DLSA: a cascade of flow filters with cluster-aided classifiers."""
