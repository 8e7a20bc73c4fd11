"""Experiment files: typed, validated and resolved into a plan of artifacts.

Nothing here imports torch, and nothing here is part of a code identity: a setting reaches a
result through the artifact's spec and in no other way.
"""
