"""What ranks send while gradients are accumulated: no more than each ZeRO stage needs."""

import json
from pathlib import Path

import pytest

WORKER = Path(__file__).parent / "worker_collectives.py"
WHOLE = ("0-fp32", "1-fp32", "1-bf16")
PARTITIONED = ("2-fp32", "2-bf16")
SHARDED = ("3-fp32", "3-bf16")


@pytest.mark.slow
def test_micro_batches_send_only_what_their_stage_needs(ranks):
    cases = [f"{case}-{n}" for case in WHOLE + PARTITIONED + SHARDED for n in (1, 4)]
    for output in ranks(WORKER, 2, ",".join(cases)):
        rows = {row["case"]: row for row in map(json.loads, filter(lambda s: s.startswith("{"), output.splitlines()))}
        assert list(rows) == cases
        for row in rows.values():
            padded = range(row["weights"], row["weights"] + 32)  # slices of equal size
            *before, last = row["parts"]
            if row["case"].startswith(WHOLE):  # whole gradients stay on each rank until the last micro-batch
                assert before == [{}] * len(before), row
                assert list(last) == ["allreduce"], row
                assert last["allreduce"] in padded, row
            elif row["case"].startswith(PARTITIONED):  # a rank keeps its slice of gradients only, so each is reduced
                assert all(list(part) == ["allreduce"] and part["allreduce"] in padded for part in row["parts"]), row
            else:  # nor is there a whole weight: gathered once and kept for the backward pass, gradients scattered
                want = {"allgather_base", "reduce_scatter_base"}
                assert all(part.keys() == want and set(part.values()) <= {*padded} for part in row["parts"]), row
            # The step sends updated weights (at stage 3 they are gathered when they are used) and a few numbers.
            sent = row["step"].get("allgather_base", 0)
            assert sent in padded if row["case"][0] in "12" else sent == 0, row
            assert row["step"].get("allreduce", 0) <= 3, row
            # Accumulation adds nothing to the step itself.
            one = rows[row["case"][:-1] + "1"]
            assert row["step"] == one["step"], row
