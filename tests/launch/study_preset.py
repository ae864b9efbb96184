"""Preset for the test of a study: one pretext task."""

import dataclasses

from configs.study import small


def one():
    return dataclasses.replace(small(), pretexts=small().pretexts[:1])
