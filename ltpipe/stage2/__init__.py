"""Stage two: what is learned from cached features, in seconds."""
