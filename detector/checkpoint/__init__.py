"""Checkpoints: one file each, and their folder."""
