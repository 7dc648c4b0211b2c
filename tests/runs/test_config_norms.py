import pytest

pytest.importorskip("detectron2")

from gw_detectron.config import flatten
from gw_detectron.errors import UsageError
from gw_detectron.runs.config_norms import Entry, norm_label, norms, parse_entries

from .synthetic import config, everywhere


def flat(**overrides):
    return flatten(config(**overrides))


PLACED = {"MODEL__BACKBONE__NAME": "build_gw_resnet_fpn_backbone", "MODEL__RESNETS__NORM": "GW"}


@pytest.mark.parametrize(
    "overrides, label",
    [
        (everywhere("GN"), "GN"),
        (everywhere("GW( iterations = 5,num_groups=16)"), "GW(num_groups=16)"),
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


@pytest.mark.parametrize(
    "norm, spelling",
    [
        ("GW(num_groups=64, eps=1e-5)", "GW"),
        (" GW ", "GW"),
        ("GW(rescale=TRUE)", "GW(rescale=true)"),
        ("GW(from_another_version=1)", "GW(from_another_version=1)"),
        ("", ""),
    ],
)
def test_a_norm_has_one_spelling(norm, spelling):
    assert norms(flat(**everywhere(norm))) == {"backbone": spelling, "FPN": spelling}


def parse(*texts, **overrides):
    return parse_entries(texts, flat(**overrides))


def as_dict(entry):
    return dict(zip(entry.overrides[0::2], entry.overrides[1::2], strict=True))


def test_a_norm_is_put_at_every_norm_of_the_model():
    (plain,) = parse("GW(num_groups=16, iterations=7)")
    norm = "GW(num_groups=16, iterations=7)"
    assert as_dict(plain) == {"MODEL.RESNETS.NORM": norm, "MODEL.FPN.NORM": norm}
    (heads,) = parse("BN", MODEL__MASK_ON=True, MODEL__ROI_BOX_HEAD__NUM_CONV=4)
    assert set(as_dict(heads)) == {
        "MODEL.RESNETS.NORM",
        "MODEL.FPN.NORM",
        "MODEL.ROI_BOX_HEAD.NORM",
        "MODEL.ROI_MASK_HEAD.NORM",
    }
    (retinanet,) = parse(
        "BN",
        MODEL__META_ARCHITECTURE="RetinaNet",
        MODEL__BACKBONE__NAME="build_gw_retinanet_resnet_fpn_backbone",
    )
    assert as_dict(retinanet) == {
        "MODEL.RESNETS.NORM": "BN",
        "MODEL.FPN.NORM": "BN",
        "MODEL.RETINANET.NORM": "BN",
        "MODEL.BACKBONE.NAME": "build_retinanet_resnet_fpn_backbone",
    }


def test_a_named_set_is_read_as_a_shell_would():
    text = "S1-B2 lr: MODEL.RESNETS.NORM 'GW(num_groups=16, iterations=7)' SOLVER.STEPS \"(3, 5)\""
    (entry,) = parse(text)
    assert entry.name == "S1-B2 lr" and entry.folder == "S1-B2-lr"
    assert as_dict(entry) == {
        "MODEL.RESNETS.NORM": "GW(num_groups=16, iterations=7)",
        "SOLVER.STEPS": "(3, 5)",
    }


@pytest.mark.parametrize(
    "name, folder",
    [
        ("GN", "GN"),
        ("GW(num_groups=16, iterations=7)", "GW-num_groups=16-iterations=7"),
        ("GW(eps=1e-5)", "GW-eps=1e-5"),
        ("../a b", "a-b"),
    ],
)
def test_a_folder_is_a_name_without_what_a_shell_minds(name, folder):
    assert Entry(name, ()).folder == folder


@pytest.mark.parametrize(
    "texts, fragments",
    [
        (["GM"], ['"GM"', "GN"]),
        (["GW(groups=16)"], ["groups", "num_groups"]),
        (["GN", "GN"], ['"GN"', "folder"]),
        (["gn: A.B 1", "GN"], ['"gn"', '"GN"']),
        (["x: A.B"], ["x: A.B", "KEY VALUE"]),
        (["x:"], ["KEY VALUE"]),
        (["x: A.B 'GN"], ["no closing quotation"]),
        ([": A.B 1"], ["name"]),
        (["GN", "SOLVER.MAX_ITER", "9"], ["SOLVER.MAX_ITER", "end"]),
    ],
)
def test_a_wrong_entry_is_one_line(texts, fragments):
    with pytest.raises(UsageError) as error:
        parse(*texts)
    message = str(error.value)
    assert all(fragment in message for fragment in fragments) and "\n" not in message
