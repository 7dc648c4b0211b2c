import csv

import pytest

pytest.importorskip("detectron2")

import analyze_config
from gw_detectron.errors import UsageError

from ..norms.models import FULLY_CONNECTED, QUICKSTART


def run(*arguments):
    arguments = ["--config-file", QUICKSTART, *map(str, arguments)]
    analyze_config.main(analyze_config.argument_parser().parse_args(arguments))


def test_it_prints_the_table_and_writes_a_csv(tmp_path, capsys):
    run("--size", 96, 130, "--csv", tmp_path / "norms.csv", "MODEL.FPN.NORM", "GN")
    out = capsys.readouterr().out
    assert "an image of 96 x 130" in out
    with (tmp_path / "norms.csv").open() as file:
        rows = {row["layer"]: row for row in csv.DictReader(file)}
    assert f"{len(rows)} norms: " in out and all(name in out for name in rows)
    lateral, stem = rows["backbone.fpn_lateral5"], rows["backbone.bottom_up.stem.conv1"]
    assert (lateral["norm"], lateral["size"], lateral["T"]) == ("GN", "3x5", "")
    assert float(lateral["share"]) == 64 / (3 * 5 * int(lateral["C"]))
    assert (stem["norm"], stem["g"], stem["T"]) == ("GW", "16", "5")
    assert float(stem["1/10"]) == pytest.approx(0.005105, abs=1e-6)


def test_a_fully_connected_gw_is_flagged(capsys):
    run("--size", 64, 64, *FULLY_CONNECTED)
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if line.startswith("roi_heads.box_head  ")]
    assert "128 of 1 " in line and "over the limit  g=16" in line
    assert "\nOver the limit, with more constraints than values" in out


def test_a_model_without_norms_has_an_empty_table(capsys):
    run("--size", 64, 64, "MODEL.RESNETS.NORM", "", "MODEL.FPN.NORM", "")
    assert "0 norms" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message", [(["--size", 0, 64], "--size 0 64"), (["--csv", "."], "--csv .: ")]
)
def test_a_mistake_says_what_is_wrong(arguments, message):
    with pytest.raises(UsageError, match=message):
        run(*arguments)
