"""Streams: sample i of a stream is a pure function of (data, config, seed, i).

Nothing here keeps a position: ranks and workers are told which global indices
are theirs, so a run goes on at the same sample whatever their number.
"""

from voxscale.stream.alike import AlikeConfig
from voxscale.stream.bricks import ShardStream, ShardStreamConfig
from voxscale.stream.cases import CaseStream, CaseStreamConfig
from voxscale.stream.indices import rank_indices
from voxscale.stream.interface import PatchStream, Sample
from voxscale.stream.quality import Quality, shuffle_quality
from voxscale.stream.scans import StoreStream, StoreStreamConfig
from voxscale.stream.weights import WeightsConfig
from voxscale.stream.wide import Curriculum, WideCrops

__all__ = [
    "AlikeConfig",
    "CaseStream",
    "CaseStreamConfig",
    "Curriculum",
    "PatchStream",
    "Quality",
    "Sample",
    "ShardStream",
    "ShardStreamConfig",
    "StoreStream",
    "StoreStreamConfig",
    "WeightsConfig",
    "WideCrops",
    "rank_indices",
    "shuffle_quality",
]
