"""Long-tailed image classification as a two-stage, feature-cached pipeline."""

__version__ = "0.1.0"
