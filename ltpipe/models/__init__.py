"""Networks: each has `.features(x) -> (B, feature_dim)`, `.head` and `.feature_dim`."""
