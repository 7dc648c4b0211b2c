"""
Every detector's config, built, against the paper's recipe, or Detectron2's where there is none.

What is expected is written out here; nothing of it is read from the configs.
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from gw_detectron.config import flatten
from gw_detectron.layers import GroupWhitening
from gw_detectron.model_zoo import get_config

ROOT = Path(__file__).parents[2]

RGB = ("RGB", [123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
BGR = ("BGR", [103.53, 116.28, 123.675], [57.375, 57.12, 58.395])  # of Caffe2's ResNeXts

# images a batch, learning rate, steps, iterations
SCHEDULE_1X = (16, 0.02, (60_000, 80_000), 90_000)
SCHEDULE_3X = (16, 0.02, (210_000, 250_000), 270_000)
SCHEDULE_X101 = (8, 0.01, (120_000, 160_000), 180_000)
SCHEDULE_RETINANET = (16, 0.01, (60_000, 80_000), 90_000)
SCHEDULE_QUICK = (4, 0.02, (150, 180), 200)

TORCHVISION = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
CAFFE2 = "detectron2://ImageNetPretrained/FAIR/X-101-32x8d.pkl"

DETECTRON2_SIZES = (640, 672, 704, 736, 768, 800)
PAPER_SIZES = (800,)


@dataclass(frozen=True)
class Expected:
    weights: str
    backbone: str | tuple[str, str]  # (at S1-B2, everywhere else), or one for both
    norms: dict[str, int]  # how many of each kind the whole model has
    fpn: str = ""
    box: tuple[int, int, str] | None = (0, 2, "")  # convolutions, fully connected, norm
    mask: str | None = None  # None: no mask head
    retinanet: str | None = None
    cascade: bool = False
    depth: int = 50
    resnext: bool = False
    schedule: tuple = SCHEDULE_1X
    warmup: tuple[int, float] = (1000, 0.001)
    freeze_at: int = 2
    input: tuple = RGB
    sizes: tuple = DETECTRON2_SIZES
    paper: bool = False  # the losses, pooling and biases of maskrcnn-benchmark
    datasets: tuple[str, str] = ("coco_2017_train", "coco_2017_val")
    proposals: int = 1000  # an image, in training


def paper(weights, backbone, norms, **others):
    return Expected(
        weights, backbone, norms, sizes=PAPER_SIZES, warmup=(500, 0.3333), paper=True, **others
    )


def x101(weights, backbone, norms, norm, **others):
    return paper(
        weights, backbone, norms, fpn=norm, box=(4, 1, norm), mask=norm,
        depth=101, resnext=True, schedule=SCHEDULE_X101, **others,
    )  # fmt: skip


def quickstart(norm, norms, schedule=SCHEDULE_QUICK, **others):
    return Expected(
        "", norm, norms, fpn=norm, depth=18, schedule=schedule, warmup=(50, 0.001),
        freeze_at=0, **others,
    )  # fmt: skip


S1_B2 = ("GW64", "FrozenBN")

CONFIGS = {
    # the paper's Faster R-CNN table: 53 norms in ResNet-50, 17 of them at S1-B2; 8 in the FPN
    "COCO-Detection/faster_rcnn_R_50_FPN_2fc_1x_frozenbn": paper(
        TORCHVISION, "FrozenBN", {"FrozenBN": 53}
    ),
    "COCO-Detection/faster_rcnn_R_50_FPN_2fc_1x_gn": paper(
        "gw://R-50-GN.pth", "GN32", {"GN32": 53}
    ),
    "COCO-Detection/faster_rcnn_R_50_FPN_2fc_1x_gw": paper(
        "gw://R-50-GW.pth", S1_B2, {"GW64": 17, "FrozenBN": 36}
    ),
    "COCO-Detection/faster_rcnn_R_50_FPN_4conv1fc_1x_frozenbn": paper(
        TORCHVISION, "FrozenBN", {"FrozenBN": 53}, box=(4, 1, "")
    ),
    "COCO-Detection/faster_rcnn_R_50_FPN_4conv1fc_1x_gn": paper(
        "gw://R-50-GN.pth", "GN32", {"GN32": 65}, fpn="GN32", box=(4, 1, "GN32")
    ),
    "COCO-Detection/faster_rcnn_R_50_FPN_4conv1fc_1x_gw": paper(
        "gw://R-50-GW.pth", S1_B2, {"GW64": 21, "GN32": 8, "FrozenBN": 36},
        fpn="GN32", box=(4, 1, "GW64"),
    ),
    "COCO-Detection/faster_rcnn_R_50_FPN_4conv1fc_1x_gw_all": paper(
        "gw://R-50-GW.pth", S1_B2, {"GW64": 29, "FrozenBN": 36},
        fpn="GW64", box=(4, 1, "GW64"),
    ),
    # the paper's Mask R-CNN table: 104 norms in ResNeXt-101, 34 of them at S1-B2
    "COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_4conv1fc_1x_frozenbn": x101(
        CAFFE2, "FrozenBN", {"FrozenBN": 104}, "", input=BGR
    ),
    "COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_4conv1fc_1x_gn": x101(
        "gw://X-101-32x8d-GN.pth", "GN32", {"GN32": 120}, "GN32"
    ),
    "COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_4conv1fc_1x_gw": x101(
        "gw://X-101-32x8d-GW.pth", S1_B2, {"GW64": 50, "FrozenBN": 70}, "GW64"
    ),
    # beyond the paper
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x_frozenbn": Expected(
        TORCHVISION, "FrozenBN", {"FrozenBN": 53}, mask=""
    ),
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x_gn": Expected(
        "gw://R-50-GN.pth", "GN32", {"GN32": 65}, fpn="GN32", mask="GN32"
    ),
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x_gw": Expected(
        "gw://R-50-GW.pth", S1_B2, {"GW64": 29, "FrozenBN": 36}, fpn="GW64", mask="GW64"
    ),
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x_frozenbn": Expected(
        TORCHVISION, "FrozenBN", {"FrozenBN": 53}, mask="", schedule=SCHEDULE_3X
    ),
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x_gn": Expected(
        "gw://R-50-GN.pth", "GN32", {"GN32": 65}, fpn="GN32", mask="GN32", schedule=SCHEDULE_3X
    ),
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x_gw": Expected(
        "gw://R-50-GW.pth", S1_B2, {"GW64": 29, "FrozenBN": 36},
        fpn="GW64", mask="GW64", schedule=SCHEDULE_3X,
    ),
    "COCO-Detection/faster_rcnn_R_101_FPN_3x_gw": Expected(
        "gw://R-101-GW.pth", S1_B2, {"GW64": 42, "FrozenBN": 70},
        fpn="GW64", depth=101, schedule=SCHEDULE_3X,
    ),
    "COCO-Detection/retinanet_R_50_FPN_1x_gw": Expected(
        "gw://R-50-GW.pth", S1_B2, {"GW64": 31, "FrozenBN": 36},
        fpn="GW64", box=None, retinanet="GW64", schedule=SCHEDULE_RETINANET,
    ),
    "Misc/cascade_mask_rcnn_R_50_FPN_1x_gw": Expected(
        "gw://R-50-GW.pth", S1_B2, {"GW64": 29, "FrozenBN": 36},
        fpn="GW64", mask="GW64", cascade=True,
        proposals=2000,
    ),
    "Misc/scratch_faster_rcnn_R_50_FPN_3x_gw": Expected(
        "", "GW16", {"GW16": 65}, fpn="GW16", box=(4, 1, "GW16"),
        schedule=SCHEDULE_3X, warmup=(3000, 0.001), freeze_at=0,
    ),
    "Misc/scratch_mask_rcnn_R_50_FPN_3x_gw": Expected(
        "", "GW16", {"GW16": 69}, fpn="GW16", box=(4, 1, "GW16"), mask="GW16",
        schedule=SCHEDULE_3X, warmup=(3000, 0.001), freeze_at=0,
    ),
    # small enough for a CPU: 20 norms in ResNet-18
    "quickstart/faster_rcnn_R_18_FPN_gn": quickstart("GN32", {"GN32": 28}, sizes=(200,)),
    "quickstart/faster_rcnn_R_18_FPN_gw": quickstart("GW16", {"GW16": 28}, sizes=(200,)),
    "quickstart/mask_rcnn_R_18_FPN_gw": quickstart(
        "GW16", {"GW16": 28}, schedule=(4, 0.02, (230, 275), 300), sizes=(192,), mask="",
        datasets=("gw_shapes_train", "gw_shapes_val"),
    ),
}  # fmt: skip

TWINS = [
    "COCO-Detection/faster_rcnn_R_50_FPN_2fc_1x_gw",
    "COCO-Detection/faster_rcnn_R_50_FPN_4conv1fc_1x_gw",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x_gw",
]

NORM_KEYS = {
    "MODEL.WEIGHTS", "MODEL.BACKBONE.NAME", "MODEL.RESNETS.NORM", "MODEL.FPN.NORM",
    "MODEL.ROI_BOX_HEAD.NORM", "MODEL.ROI_MASK_HEAD.NORM",
}  # fmt: skip
INPUT_KEYS = {"INPUT.FORMAT", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"}

ROWS = {
    "COCO-Detection/faster_rcnn_R_50_FPN_2fc_1x": NORM_KEYS,
    "COCO-Detection/faster_rcnn_R_50_FPN_4conv1fc_1x": NORM_KEYS,
    "COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_4conv1fc_1x": NORM_KEYS | INPUT_KEYS,
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x": NORM_KEYS,
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x": NORM_KEYS,
    "quickstart/faster_rcnn_R_18_FPN": NORM_KEYS,
}


def files(suffix):
    """The configs that detectors are trained with: relative to configs/, without the suffix."""
    paths = [path.relative_to(ROOT / "configs") for path in ROOT.glob(f"configs/**/*{suffix}")]
    return {
        path.with_suffix("").as_posix()
        for path in paths
        if not path.name.startswith("Base-")
        and path.parts[0] not in ("common", "ImageNet-Classification")
    }


def norms_of(model):
    """The name of every norm -> its kind and number of groups."""
    norms = {}
    for name, module in model.named_modules():
        if isinstance(module, GroupWhitening):
            assert (module.iterations, module.method, module.rescale) == (5, "itn", False)
            norms[name] = f"GW{module.num_groups}"
        elif isinstance(module, nn.GroupNorm):
            norms[name] = f"GN{module.num_groups}"
        elif isinstance(module, FrozenBatchNorm2d):
            norms[name] = "FrozenBN"
        elif "norm" in type(module).__name__.lower():
            norms[name] = type(module).__name__
    return norms


@pytest.fixture(scope="module", params=CONFIGS)
def built(request):
    """(what is expected, cfg, model without values), each config built once."""
    cfg = get_config(f"{request.param}.yaml")
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return CONFIGS[request.param], cfg, build_model(cfg)


def test_every_config_is_in_this_test():
    assert files(".yaml") == set(CONFIGS)
    assert files(".py") == set(TWINS)


def test_every_norm_is_where_it_should_be(built):
    expected, _, model = built
    backbone = expected.backbone
    at_s1_b2, elsewhere = (backbone, backbone) if isinstance(backbone, str) else backbone
    norms = norms_of(model)
    for place, kind in {
        r"bottom_up\.(stem\.conv1|res\d\.\d+\.conv2)\.": at_s1_b2,
        r"bottom_up\.res\d\.\d+\.(conv[13]|shortcut)\.": elsewhere,
        r"\.fpn_": expected.fpn,
        r"\.box_head\.": expected.box and expected.box[2],
        r"\.mask_head\.": expected.mask,
        r"_subnet\.": expected.retinanet,
    }.items():
        assert {norms[name] for name in norms if re.search(place, name)} == ({kind} - {"", None})
    assert Counter(norms.values()) == expected.norms


def test_the_stem_and_res2_are_frozen_or_nothing_is(built):
    expected, cfg, model = built
    assert cfg.MODEL.BACKBONE.FREEZE_AT == expected.freeze_at
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    stages = ("backbone.bottom_up.stem.", "backbone.bottom_up.res2.")[: expected.freeze_at]
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith(stages)}


def test_weights_are_the_ones_that_the_norms_were_trained_with(built):
    expected, cfg, _ = built
    assert cfg.MODEL.WEIGHTS == expected.weights


def test_backbone_is_strided_in_the_3x3(built):
    expected, _, model = built
    if expected.depth >= 50:
        for stage in (3, 4, 5):
            block = getattr(model.backbone.bottom_up, f"res{stage}")[0]
            assert (block.conv1.stride, block.conv2.stride) == ((1, 1), (2, 2))
    groups = model.backbone.bottom_up.res2[0].conv2.groups
    assert groups == (32 if expected.resnext else 1)
    assert model.backbone.bottom_up.res2[0].conv2.out_channels == (256 if expected.resnext else 64)


def test_input(built):
    expected, cfg, model = built
    form, mean, std = expected.input
    assert (model.input_format, cfg.INPUT.FORMAT) == (form, form)
    assert (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD) == (mean, std)
    assert cfg.INPUT.MIN_SIZE_TRAIN == expected.sizes
    assert cfg.INPUT.MIN_SIZE_TEST == expected.sizes[-1]
    assert (cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TEST) == (1333, 1333)
    assert (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST) == expected.datasets


def test_schedule(built):
    expected, cfg, _ = built
    solver = cfg.SOLVER
    schedule = (solver.IMS_PER_BATCH, solver.BASE_LR, solver.STEPS, solver.MAX_ITER)
    assert schedule == expected.schedule
    assert (solver.WARMUP_ITERS, solver.WARMUP_FACTOR) == expected.warmup
    assert (solver.GAMMA, solver.MOMENTUM) == (0.1, 0.9)


def test_optimizer_decays_weights_as_the_recipe_says(built):
    expected, cfg, model = built
    lr = expected.schedule[1]
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    norms = {id(p) for m in model.modules() if isinstance(m, nn.GroupNorm) for p in m.parameters()}
    for group in build_optimizer(cfg, model).param_groups:
        for p in group["params"]:
            settings = (lr, 1e-4)
            if expected.paper and names[id(p)].endswith(".bias"):
                settings = (2 * lr, 0)
            elif not expected.paper and id(p) in norms:  # Detectron2's default, GN's and GW's alike
                settings = (lr, 0)
            assert (group["lr"], group["weight_decay"]) == settings


def test_heads(built):
    expected, cfg, model = built
    if expected.retinanet is not None:
        assert not hasattr(model, "roi_heads")
        sizes = [[s * 2 ** (i / 3) for i in range(3)] for s in (32, 64, 128, 256, 512)]
        for read, size in zip(cfg.MODEL.ANCHOR_GENERATOR.SIZES, sizes, strict=True):
            assert read == pytest.approx(size, rel=1e-7)
        assert (model.anchor_matcher.thresholds, model.smooth_l1_beta) == (
            [-float("inf"), 0.4, 0.5, float("inf")],
            0.0,
        )
        return
    convs, fcs, _ = expected.box
    heads = model.roi_heads.box_head if expected.cascade else [model.roi_heads.box_head]
    assert len(heads) == (3 if expected.cascade else 1)
    for head in heads:
        assert [conv.out_channels for conv in head.conv_norm_relus] == [256] * convs
        assert len(head.fcs) == fcs
    assert model.roi_heads.mask_on == cfg.MODEL.MASK_ON == (expected.mask is not None)


def test_proposals_losses_and_pooling(built):
    expected, cfg, model = built
    if expected.retinanet is not None or expected.depth == 18:
        return
    rpn, roi_heads = model.proposal_generator, model.roi_heads
    assert rpn.pre_nms_topk == {True: 2000, False: 1000}
    assert rpn.post_nms_topk == {True: expected.proposals, False: 1000}
    assert (rpn.batch_size_per_image, roi_heads.batch_size_per_image) == (256, 512)
    assert (rpn.positive_fraction, roi_heads.positive_fraction) == (0.5, 0.25)
    beta, boundary = (0.1111, 0) if expected.paper else (0.0, -1)
    assert (rpn.smooth_l1_beta, rpn.anchor_boundary_thresh) == (beta, boundary)
    predictors = roi_heads.box_predictor if expected.cascade else [roi_heads.box_predictor]
    for predictor in predictors:
        assert predictor.smooth_l1_beta == (1.0 if expected.paper else 0.0)
    poolers = [roi_heads.box_pooler] + ([roi_heads.mask_pooler] if roi_heads.mask_on else [])
    for pooler in poolers:
        for align in pooler.level_poolers:
            pooling = (align.sampling_ratio, align.aligned)
            assert pooling == ((2, False) if expected.paper else (0, True))


@pytest.mark.parametrize("row", ROWS)
def test_a_rows_norms_differ_in_nothing_else(row):
    names = [name for name in CONFIGS if re.fullmatch(f"{row}_(frozenbn|gn|gw|gw_all)", name)]
    first, *others = [flatten(get_config(f"{name}.yaml")) for name in names]
    assert others
    for other in others:
        assert {key for key in first if first[key] != other[key]} <= ROWS[row]


@pytest.fixture(scope="module", params=TWINS)
def twins(request):
    """(cfg, its model, LazyConfig, its model)"""
    cfg = get_config(f"{request.param}.yaml")
    cfg.MODEL.DEVICE = "cpu"
    lazy = get_config(f"{request.param}.py")
    return cfg, build_model(cfg), lazy, instantiate(lazy.model)


def example(masks):
    torch.manual_seed(0)
    instances = Instances((128, 160))
    instances.gt_boxes = Boxes(torch.tensor([[8.0, 16.0, 72.0, 88.0], [60.0, 30.0, 140.0, 110.0]]))
    instances.gt_classes = torch.tensor([3, 17])
    if masks:
        instances.gt_masks = BitMasks(torch.rand(2, 128, 160) > 0.5)
    return {"image": torch.randint(0, 256, (3, 128, 160)), "instances": instances}


def test_a_lazy_config_is_the_same_model(twins):
    cfg, model, _, lazy_model = twins
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (model, lazy_model)]
    assert shapes[0] == shapes[1]
    assert norms_of(model) == norms_of(lazy_model)
    lazy_model.load_state_dict(model.state_dict())
    losses = []
    for m in (model, lazy_model):
        assert m.roi_heads.batch_size_per_image == 512
        m.roi_heads.batch_size_per_image = 32  # for the time it takes
        torch.manual_seed(1)  # for the anchors and proposals that are sampled
        with EventStorage(), torch.no_grad():
            losses.append({k: v.item() for k, v in m([example(cfg.MODEL.MASK_ON)]).items()})
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_lazy_config_is_trained_the_same_way(twins, tmp_path):
    cfg, model, lazy, lazy_model = twins
    LazyConfig.save(lazy, str(tmp_path / "config.yaml"))  # as lazyconfig_train_net does first
    lazy.optimizer.params.model = lazy_model
    optimizers = build_optimizer(cfg, model), instantiate(lazy.optimizer)
    of_parameter = []
    for optimizer, m in zip(optimizers, (model, lazy_model), strict=True):
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        of_parameter.append(
            {
                name: [groups[id(p)][key] for key in ("lr", "weight_decay", "momentum")]
                for name, p in m.named_parameters()
                if p.requires_grad
            }
        )
    assert of_parameter[0] == of_parameter[1]

    multiplier = build_lr_scheduler(cfg, optimizers[0])._multiplier
    lazy_multiplier = instantiate(lazy.lr_multiplier)
    for iteration in (0, 100, 499, 500, 999, 1000, 59_999, 60_000, 79_999, 80_000, 89_999):
        assert multiplier(iteration / 90_000) == pytest.approx(lazy_multiplier(iteration / 90_000))

    mapper = lazy.dataloader.train.mapper
    assert lazy.train.max_iter == cfg.SOLVER.MAX_ITER
    assert lazy.dataloader.train.total_batch_size == cfg.SOLVER.IMS_PER_BATCH
    assert lazy.train.init_checkpoint == cfg.MODEL.WEIGHTS
    assert tuple(mapper.augmentations[0].short_edge_length) == cfg.INPUT.MIN_SIZE_TRAIN
    assert (mapper.image_format, mapper.use_instance_mask) == ("RGB", cfg.MODEL.MASK_ON)
    assert lazy.dataloader.test.mapper.image_format == "RGB"


def test_the_docs_name_every_config_that_is_there_and_no_other():
    docs = (ROOT / "docs/reproduce.md").read_text(encoding="utf-8")
    named = set(re.findall(r"configs/([\w/-]+)\.(?:yaml|py)\b", docs))
    assert {name for name in CONFIGS if not name.startswith("quickstart/")} <= named
    assert all((ROOT / f"configs/{name}.yaml").is_file() for name in named)
