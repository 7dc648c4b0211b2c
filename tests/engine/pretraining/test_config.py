import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone
from detectron2.solver import build_lr_scheduler, build_optimizer
from torch import nn

from gw_detectron.engine.pretraining import add_pretraining_config
from gw_detectron.engine.pretraining.classifier import ImageClassifier
from gw_detectron.engine.pretraining.config import check_pretraining, with_schedule
from gw_detectron.errors import UsageError
from gw_detectron.layers import GroupWhitening
from gw_detectron.modeling.backbone import place_norms

from .commands import CONFIGS

# torchvision's own counts for 1000 classes
PARAMETERS = {
    "R_18": 11_689_512,
    "R_50": 25_557_032,
    "R_101": 44_549_160,
    "X_50_32x4d": 25_028_904,
    "X_101_32x8d": 88_791_336,
}
KINDS = {"bn": nn.BatchNorm2d, "gn": nn.GroupNorm, "gw": GroupWhitening}
# the stem and one a block
GW_LAYERS = {"R_18": 9, "R_50": 17, "R_101": 34, "X_50_32x4d": 17, "X_101_32x8d": 34}
NORMS = {"R_18": 20, "R_50": 53, "R_101": 104, "X_50_32x4d": 53, "X_101_32x8d": 104}


def load(name=None, *opts):
    cfg = get_cfg()
    add_pretraining_config(cfg)
    if name:
        cfg.merge_from_file(str(CONFIGS / f"{name}.yaml"))
    cfg.merge_from_list(list(opts))
    return cfg


def test_every_config_is_tested():
    expected = {f"{net}_{norm}" for net in PARAMETERS for norm in KINDS} | {"Base-Classification"}
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == expected


@pytest.mark.parametrize("norm", KINDS)
@pytest.mark.parametrize("net", PARAMETERS)
def test_the_networks_are_those_of_the_paper(net, norm):
    cfg = load(f"{net}_{norm}", "PRETRAINING.NUM_CLASSES", 1000)
    with torch.device("meta"):
        model = ImageClassifier(cfg)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[net]
    assert all(p.requires_grad for p in model.parameters())
    placed = [m for m in model.modules() if isinstance(m, KINDS[norm])]
    batch_norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    if norm == "gw":
        assert len(placed) == GW_LAYERS[net] and len(batch_norms) == NORMS[net] - GW_LAYERS[net]
        assert isinstance(model.backbone.res3[1].conv1.norm, KINDS["gw" if net == "R_18" else "bn"])
        assert {(m.num_groups, m.iterations) for m in placed} == {(64, 5)}
    else:
        assert len(placed) == NORMS[net]
    if net != "R_18":  # the stride is the 3x3 convolution's
        assert model.backbone.res3[0].conv2.stride == (2, 2)


def test_the_recipe_is_the_papers():
    cfg = with_schedule(load("R_50_gw"), num_images=1_281_167)
    assert cfg.SOLVER.IMS_PER_BATCH == 256
    assert cfg.SOLVER.MAX_ITER == 500_456  # 100 x 1281167 / 256
    assert cfg.SOLVER.STEPS == (150_137, 300_274, 450_410)
    assert cfg.TEST.EVAL_PERIOD == cfg.SOLVER.CHECKPOINT_PERIOD == 5005
    assert cfg.SOLVER.WARMUP_ITERS == 0
    assert not cfg.SOLVER.AMP.ENABLED


def test_learning_rate_and_weight_decay_are_the_papers_everywhere():
    cfg = with_schedule(load("R_18_gw", "PRETRAINING.NUM_CLASSES", 3), num_images=2560)
    model = nn.Sequential(nn.Conv2d(3, 64, 1), nn.BatchNorm2d(64), GroupWhitening(64))
    optimizer = build_optimizer(cfg, model)
    schedule = build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(1000):
        (rate,) = {group["lr"] for group in optimizer.param_groups}
        rates.append(rate)
        optimizer.step()
        schedule.step()
    for start, end, rate in ((0, 300, 0.1), (300, 600, 0.01), (600, 900, 1e-3), (900, 1000, 1e-4)):
        assert rates[start:end] == pytest.approx([rate] * (end - start))
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 6
    for group in optimizer.param_groups:
        assert (group["weight_decay"], group["momentum"]) == (1e-4, 0.9)


def test_the_trunk_starts_as_torchvisions_does():
    """Normal weights of variance 2 / fan-out, which keeps a gradient's scale."""
    cfg = load("R_50_bn", "PRETRAINING.NUM_CLASSES", 10)
    model = ImageClassifier(cfg)
    conv = model.backbone.res4[1].conv2
    assert conv.weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.02)
    assert model.backbone.stem.conv1.weight.std().item() == pytest.approx(
        (2 / (49 * 64)) ** 0.5, rel=0.05
    )
    assert model.linear.weight.std().item() == pytest.approx(0.01, rel=0.05)


def test_the_classifiers_backbone_is_the_detectors():
    cfg = load("R_50_gw", "PRETRAINING.NUM_CLASSES", 10)
    with torch.device("meta"):
        model, backbone = ImageClassifier(cfg), build_backbone(cfg)
        stock = load("R_50_bn", "MODEL.BACKBONE.NAME", "build_resnet_backbone")
        expected = build_backbone(stock)
    place_norms(expected, "GW", "S1-B2")
    assert model.backbone.state_dict().keys() == backbone.state_dict().keys()
    assert backbone.state_dict().keys() == expected.state_dict().keys()


@pytest.mark.parametrize(
    "opts, fragments",
    [
        (["MODEL.META_ARCHITECTURE", "GeneralizedRCNN"], ["GeneralizedRCNN", "ImageNet-Classif"]),
        (["SOLVER.MAX_ITER", 9], ["SOLVER.MAX_ITER 9", "PRETRAINING.EPOCHS"]),
        (["TEST.EVAL_PERIOD", 9], ["TEST.EVAL_PERIOD 9", "PRETRAINING.EVAL_EPOCHS"]),
        (["PRETRAINING.EPOCHS", 0], ["PRETRAINING.EPOCHS 0"]),
        (["PRETRAINING.SIZE_TEST", 300], ["SIZE_TEST 300", "RESIZE_TEST 256"]),
        (["INPUT.FORMAT", "BGR"], ["INPUT.FORMAT BGR", "RGB"]),
        (["MODEL.GW.BASE_NORM", "FrozenBN"], ["FrozenBN", "BN", "MODEL.GW.BASE_NORM"]),
        (["MODEL.BACKBONE.FREEZE_AT", 2], ["MODEL.BACKBONE.FREEZE_AT 2"]),
        (["DATASETS.TRAIN", ("a", "b")], ["DATASETS.TRAIN", "('a', 'b')"]),
    ],
)
def test_what_pretraining_cannot_do_is_one_line(opts, fragments):
    with pytest.raises(UsageError) as error:
        check_pretraining(load("R_18_gw", *opts), load())
    message = str(error.value)
    assert all(fragment in message for fragment in fragments) and "\n" not in message


def test_what_it_can_do_passes():
    check_pretraining(load("R_18_gw"), load())
    cosine = ["SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "PRETRAINING.EPOCHS", 20]
    check_pretraining(load("R_18_gw", *cosine), load())
