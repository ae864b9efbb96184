"""Pretraining objectives, one per file."""
