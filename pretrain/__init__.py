"""Pretraining stage: self-supervised objectives and the program that trains on them."""
