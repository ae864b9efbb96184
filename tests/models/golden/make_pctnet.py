"""Record names, shapes and outputs of MIS-FM's PCT-Net: `python tests/models/golden/make_pctnet.py CHECKOUT COMMIT`.

CHECKOUT is a working tree of github.com/openmedlab/MIS-FM at COMMIT, whose class no package ships. Needs timm and
einops. Weights follow a formula (`tests/golden_weights.py`), so the file holds some values of the outputs only.
"""

import hashlib
import json
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2]))
sys.path.insert(0, str(HERE.parents[1]))

from golden_weights import made_input, made_weights  # noqa: E402

from voxscale.models.optional import declare_torchvision_operators  # noqa: E402

CHANNELS = [2, 4, 8, 8, 16]
SIZE = [1, 1, 64, 128, 128]  # the published one; in smaller ones the class takes smaller windows
VALUES = 60


def main(checkout: str, commit: str) -> None:
    """Build the class, give it weights, write what it answers."""
    declare_torchvision_operators()
    sys.path.insert(0, checkout)
    from net.pct_net import PCTNet

    params = {"input_size": SIZE[2:], "in_chns": 1, "class_num": 3, "feature_chns": CHANNELS}
    params |= {"dropout": [0, 0, 0.2, 0.2, 0.2], "resolution_mode": 1, "multiscale_pred": True}
    net = PCTNet(params).eval()
    state = net.state_dict()
    shapes = {name: list(tensor.shape) for name, tensor in state.items()}
    tables = [tensor for name, tensor in state.items() if name.endswith("relative_position_index")]
    assert all(torch.equal(table, tables[0]) for table in tables)
    net.load_state_dict(made_weights(shapes, tables[0]))
    with torch.no_grad():
        outputs = [output.flatten() for output in net(made_input(SIZE))]
    steps = [max(len(output) // VALUES, 1) for output in outputs]
    found = {
        "source": f"openmedlab/MIS-FM {commit} net/pct_net.py",
        "torch": torch.__version__.split("+")[0],
        "channels": CHANNELS,
        "input": SIZE,
        "outputs": [
            {"every": step, "values": [round(v, 6) for v in output[::step].tolist()]}
            for step, output in zip(steps, outputs, strict=True)
        ],
        "shapes": shapes,
        "index_sha256": hashlib.sha256(tables[0].numpy().tobytes()).hexdigest(),
    }
    (HERE / "pctnet.json").write_text(json.dumps(found, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
