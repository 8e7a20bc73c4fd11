"""Trained classifiers as folders of their own: export, format, card, ONNX."""
