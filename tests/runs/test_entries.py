import pytest
import yaml

pytest.importorskip("detectron2")

from gw_detectron.config import flatten
from gw_detectron.errors import UsageError
from gw_detectron.runs.entries import Entry, parse_entries

from .synthetic import config


def parse(*texts, **overrides):
    return parse_entries(texts, flatten(yaml.safe_load(config(**overrides).dump())))


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
