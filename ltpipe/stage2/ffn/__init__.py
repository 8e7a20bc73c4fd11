"""FFN: two backbones' features fused, one classifier retrained."""
