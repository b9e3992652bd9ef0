from __future__ import annotations

from adapterhub.spec.bottleneck import BottleneckSpec


def test_sizes_and_shapes() -> None:
    spec = BottleneckSpec.from_hyperparameters({"reduction_factor": 16, "mh_adapter": True, "modules_to_save": None})
    assert spec.slots == ("mh_adapter", "output_adapter")
    assert (spec.size(768), spec.size(100), spec.size(8)) == (48, 6, 1)
    assert BottleneckSpec(reduction_factor=0.5).size(32) == 64
    assert spec.tensors(768) == {
        "adapter_down.weight": (48, 768),
        "adapter_down.bias": (48,),
        "adapter_up.weight": (768, 48),
        "adapter_up.bias": (768,),
    }


def test_what_settings_add_to_a_bottleneck() -> None:
    plain = BottleneckSpec().tensors(32)
    normed = BottleneckSpec(ln_before=True, ln_after=True, scaling="channel").tensors(32)
    assert normed.keys() - plain.keys() == {
        "adapter_norm_before.weight",
        "adapter_norm_before.bias",
        "adapter_norm_after.weight",
        "adapter_norm_after.bias",
        "scaling",
    }
    assert normed["scaling"] == (32,)
    assert BottleneckSpec(scaling="learned").tensors(32)["scaling"] == (1,)
    assert BottleneckSpec(scaling=4.0).tensors(32) == plain
