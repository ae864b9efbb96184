"""What a launcher of local ranks that is asked to end makes of their answers."""

import os
import signal
import threading
import time

import pytest

from launch.cluster import Cluster
from launch.submit import executor_of, follow_local
from voxscale.errors import PreemptedError, TrainingError


@pytest.mark.parametrize(("kind", "raised"), [("DataError", TrainingError), ("PreemptedError", PreemptedError)])
def test_a_rank_that_fails_while_it_is_asked_to_end_is_no_reason_to_start_again(tmp_path, kind, raised):
    ready = tmp_path / "ready"

    def rank():
        came = []
        signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
        ready.touch()
        while not came:
            time.sleep(0.05)
        return {"error": "shard must be whole, not cut", "kind": kind}

    job = executor_of(Cluster(cluster="local"), tmp_path).submit(rank)

    def ask():
        while not ready.exists() and not job.done(force_check=True):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    asking = threading.Thread(target=ask)
    asking.start()
    with pytest.raises(raised, match="shard must be whole"):
        follow_local("pretrain", job)
    asking.join()
