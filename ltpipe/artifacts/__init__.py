"""Finished work on disk: manifests, reading with checks, why, adopt, verify, gc."""
