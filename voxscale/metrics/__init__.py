"""Segmentation scores and the statistics that compare them."""
