"""Augmentation: draw parameters per sample on the CPU, then apply them in batches on the device."""
