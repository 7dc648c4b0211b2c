import pytest
import torch
from detectron2.utils.analysis import FlopCountAnalysis

from gw_detectron.norms.layers import SizeRecorder
from gw_detectron.norms.trace import trace

from .models import C4, CASCADE, FULLY_CONNECTED, QUICKSTART, R_18, RETINANET, build


def by_name(result):
    return {layer.name: layer for layer in result.layers}


@pytest.mark.parametrize("config, opts", [(QUICKSTART, []), (RETINANET, R_18)])
def test_the_sizes_are_those_of_a_real_forward_pass(config, opts):
    model = build(config, *opts).eval()
    recorder = SizeRecorder(model)
    with torch.no_grad():
        model([{"image": torch.rand(3, 96, 130) * 255}])
    recorder.remove()
    expected = [(layer.name, layer.norm, layer.sizes) for layer in recorder.layers()]
    result = trace(model, 96, 130)
    assert [(layer.name, layer.norm, layer.sizes) for layer in result.layers] == expected
    assert len(expected) > 20


def test_the_flops_are_those_that_fvcore_counts():
    model = build(RETINANET, *R_18).eval()
    counted = FlopCountAnalysis(model, [{"image": torch.rand(3, 96, 130) * 255}])
    counted.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    assert trace(model, 96, 130).flops == counted.by_operator()["conv"]


def test_region_heads_are_counted_as_in_training():
    norm = ["MODEL.ROI_BOX_HEAD.NUM_CONV", "1", "MODEL.ROI_BOX_HEAD.NORM", "GN"]
    model = build(QUICKSTART, "MODEL.ROI_MASK_HEAD.NORM", "GW", *norm)
    layers = by_name(trace(model, 96, 130))
    box, mask = layers["roi_heads.box_head.conv1"], layers["roi_heads.mask_head.mask_fcn1"]
    # 128 regions an image, a quarter of them for the mask head
    assert (box.regions, box.sizes) == (128, ((7, 7),))
    assert (mask.regions, mask.sizes) == (32, ((14, 14),))
    assert layers["backbone.fpn_output2"].regions is None


def test_the_regions_of_cascade_are_counted_for_each_stage():
    box = ["MODEL.ROI_BOX_HEAD.NUM_CONV", "1", "MODEL.ROI_BOX_HEAD.NORM", "GW"]
    layers = by_name(trace(build(CASCADE, *R_18, *box), 96, 130))
    stages = [f"roi_heads.box_head.{stage}.conv1" for stage in range(3)]
    assert [(layers[stage].regions, layers[stage].sizes) for stage in stages] == [
        (512, ((7, 7),))
    ] * 3


def test_the_region_head_of_c4_is_counted_once():
    with_masks, without = (
        trace(build(C4, "MODEL.MASK_ON", on), 64, 96) for on in ("True", "False")
    )
    res5 = by_name(with_masks)["roi_heads.res5.2.conv2"]
    assert (res5.regions, res5.sizes) == (512, ((7, 7),))
    # 128 of the regions through the mask head: a deconvolution of 7 x 7 and 80 masks of 14 x 14
    mask_head = 128 * (2048 * 256 * 4 * 49 + 256 * 80 * 196)
    assert with_masks.flops - without.flops == mask_head


def test_a_fully_connected_norm_has_one_position():
    layer = by_name(trace(build(QUICKSTART, *FULLY_CONNECTED), 64, 64))["roi_heads.box_head"]
    assert (layer.regions, layer.sizes, layer.values) == (128, ((),), 1024)
    assert layer.is_over_limit


def test_norms_that_need_a_gpu_or_a_batch_are_traced():
    model = build(QUICKSTART, "MODEL.RESNETS.NORM", "SyncBN", "MODEL.FPN.NORM", "BN")
    kinds = [layer.kind for layer in trace(model, 64, 64).layers]
    assert set(kinds) == {"SyncBN", "BN"}


def test_the_model_is_left_as_it_was():
    model = build(QUICKSTART).train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    trace(model, 64, 96)
    assert model.training
    assert not any("forward" in vars(m) or m._forward_pre_hooks for m in model.modules())
    assert all(value.equal(state[name]) for name, value in model.state_dict().items())
    inputs = [{"image": torch.rand(3, 64, 96) * 255}]
    with torch.no_grad():
        assert model.eval().backbone(model.preprocess_image(inputs).tensor)["p2"].std() > 0
