"""CWS, stage one: classes split into shells while training."""
