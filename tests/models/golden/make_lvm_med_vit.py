"""Record names, shapes and outputs of LVM-Med's ViT: `python tests/models/golden/make_lvm_med_vit.py CHECKOUT COMMIT`.

CHECKOUT is a working tree of github.com/duyhominhnguyen/LVM-Med at COMMIT, whose class no package ships. The names
and shapes are those of its ViT-B; the outputs are of a small twin with weights that follow a formula
(`tests/golden_weights.py`), on an image of the size that its tables are made for.
"""

import functools
import json
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2]))
sys.path.insert(0, str(HERE.parents[1]))

from golden_weights import made_input, made_weights  # noqa: E402

from voxscale.models.optional import declare_torchvision_operators  # noqa: E402

SMALL = {"depth": 4, "embed_dim": 16, "num_heads": 2, "img_size": 112, "window_size": 3, "out_chans": 6}
GLOBAL = (1, 3)
VALUES = 60


def main(checkout: str, commit: str) -> None:
    """Build the class, give it weights, write what it answers."""
    declare_torchvision_operators()
    sys.path.insert(0, checkout)
    from segment_anything import our_vit

    with torch.device("meta"):
        shapes = {name: list(tensor.shape) for name, tensor in our_vit.vit_encoder_b().state_dict().items()}
    outputs = {}
    for positions in (False, True):
        net = our_vit.ImageEncoderViT(
            **SMALL, norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6), use_rel_pos=True,
            use_abs_pos=positions, global_attn_indexes=GLOBAL,
        ).eval()  # fmt: skip
        small = {name: list(tensor.shape) for name, tensor in net.state_dict().items()}
        net.load_state_dict(made_weights(small, torch.empty(0)))
        with torch.no_grad():
            output = net(made_input([1, 3, SMALL["img_size"], SMALL["img_size"]])).flatten()
        every = max(len(output) // VALUES, 1)
        values = [round(v, 6) for v in output[::every].tolist()]
        outputs["with positions" if positions else "as released"] = {"shapes": small, "every": every, "values": values}
    found = {
        "source": f"duyhominhnguyen/LVM-Med {commit} segment_anything/our_vit.py",
        "torch": torch.__version__.split("+")[0],
        "small": SMALL | {"global_blocks": GLOBAL},
        "outputs": outputs,
        "shapes": shapes,
    }
    (HERE / "lvm_med_vit.json").write_text(json.dumps(found, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
