"""Stage one: backbones trained on images."""
