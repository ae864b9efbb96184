from voxscale.models.fmunet import FMUNet, FMUNetConfig


def test_weights_are_as_many_as_published() -> None:
    model = FMUNet(FMUNetConfig(classes=5, heads=4), "meta")
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == 47.37
    names = set(model.state_dict())
    assert {"project.weight", "encoder.en_conv0.conv_list.0.3.weight", "decoder.upcat0.up.2.weight"} <= names
    assert "out_layers.0.2.weight" in names
