import pytest

pytest.importorskip("detectron2")

from gw_detectron.config import flatten
from gw_detectron.errors import UsageError
from gw_detectron.runs.config_norms import Entry, norm_label, parse_entries

from .synthetic import config, everywhere


def flat(**overrides):
    return flatten(config(**overrides))


PLACED = {"MODEL__BACKBONE__NAME": "build_gw_resnet_fpn_backbone", "MODEL__RESNETS__NORM": "GW"}


@pytest.mark.parametrize(
    "overrides, label",
    [
        (everywhere("GN"), "GN"),
        (everywhere("GW(num_groups=16)"), "GW(num_groups=16)"),
        (everywhere(""), "none"),
        ({"MODEL__RESNETS__NORM": "GN"}, "GN, FPN none"),
        ({"MODEL__RESNETS__NORM": "FrozenBN"}, "FrozenBN"),
        (everywhere("FrozenBN"), "FrozenBN, FPN FrozenBN"),
        (PLACED, "GW at S1-B2 over FrozenBN, FPN none"),
        ({**PLACED, "MODEL__FPN__NORM": "GW"}, "GW at S1-B2 over FrozenBN"),
        (
            {**PLACED, "MODEL__FPN__NORM": "GN", "MODEL__GW__BASE_NORM": "GN"},
            "GW at S1-B2 over GN, FPN GN",
        ),
        # a head's norm counts where the head has one
        ({**everywhere("GN"), "MODEL__ROI_BOX_HEAD__NORM": "GW"}, "GN"),
        (
            {**everywhere("GN"), "MODEL__ROI_BOX_HEAD__NUM_CONV": 4},
            "GN, box head none",
        ),
        ({**everywhere("GN"), "MODEL__MASK_ON": True}, "GN, mask head none"),
    ],
)
def test_a_norms_label_says_where_it_is_and_what_is_elsewhere(overrides, label):
    assert norm_label(flat(**overrides)) == label


def parse(*texts, **overrides):
    return parse_entries(texts, flat(**overrides))


def as_dict(entry):
    return dict(zip(entry.overrides[0::2], entry.overrides[1::2], strict=True))


@pytest.mark.parametrize(
    "norm, overrides, keys",
    [
        ("GW(num_groups=16, iterations=7)", {}, ["MODEL.FPN.NORM"]),
        (
            "BN",
            {"MODEL__MASK_ON": True, "MODEL__ROI_BOX_HEAD__NUM_CONV": 4},
            ["MODEL.FPN.NORM", "MODEL.ROI_BOX_HEAD.NORM", "MODEL.ROI_MASK_HEAD.NORM"],
        ),
        (
            "BN",
            {
                "MODEL__META_ARCHITECTURE": "RetinaNet",
                "MODEL__BACKBONE__NAME": "build_gw_retinanet_resnet_fpn_backbone",
            },
            ["MODEL.FPN.NORM", "MODEL.RETINANET.NORM"],
        ),
    ],
)
def test_a_norm_is_put_at_every_norm_of_the_model(norm, overrides, keys):
    (entry,) = parse(norm, **overrides)
    expected = dict.fromkeys(["MODEL.RESNETS.NORM", *keys], norm)
    if "MODEL__BACKBONE__NAME" in overrides:
        expected["MODEL.BACKBONE.NAME"] = "build_retinanet_resnet_fpn_backbone"
    assert as_dict(entry) == expected


def test_a_named_set_is_read_as_a_shell_would():
    text = "S1-B2 lr: MODEL.RESNETS.NORM 'GW(num_groups=16, iterations=7)' SOLVER.STEPS \"(3, 5)\""
    (entry,) = parse(text)
    assert entry.name == "S1-B2 lr" and entry.folder == "S1-B2-lr"
    norm = "GW(num_groups=16, iterations=7)"
    assert as_dict(entry) == {"MODEL.RESNETS.NORM": norm, "SOLVER.STEPS": "(3, 5)"}
    assert Entry(norm, ()).folder == "GW-num_groups=16-iterations=7"
    assert Entry("../a b", ()).folder == "a-b"


@pytest.mark.parametrize(
    "texts, fragments",
    [
        (["GM"], ['"GM"', "GN"]),
        (["GW(groups=16)"], ["groups", "num_groups"]),
        (["gn: A.B 1", "GN"], ['"GN"', "name of its own"]),
        (["x: A.B"], ["x: A.B", "KEY VALUE"]),
        (["x: A.B 'GN"], ["no closing quotation"]),
        ([": A.B 1"], ["name"]),
    ],
)
def test_a_wrong_entry_is_one_line(texts, fragments):
    with pytest.raises(UsageError) as error:
        parse(*texts)
    message = str(error.value)
    assert all(fragment in message for fragment in fragments) and "\n" not in message
