import csv
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("detectron2")

import analyze_config
from gw_detectron.errors import UsageError

from ..norms.models import FULLY_CONNECTED, QUICKSTART

TOOL = Path(__file__).parents[2] / "tools" / "analyze_config.py"


def run(*arguments):
    arguments = ["--config-file", QUICKSTART, *map(str, arguments)]
    analyze_config.main(analyze_config.argument_parser().parse_args(arguments))


def test_it_prints_the_table_and_writes_csv_and_plot(tmp_path, capsys):
    files = tmp_path / "norms.csv", tmp_path / "norms.png"
    run("--size", 96, 130, "--csv", files[0], "--plot", files[1], "MODEL.FPN.NORM", "GN")
    out = capsys.readouterr().out
    assert "an image of 96 x 130" in out and "\033" not in out
    rows = list(csv.DictReader(files[0].open()))
    assert {row["norm"] for row in rows} == {"GW", "GN"}
    assert all(row["layer"] in out for row in rows)
    assert f"{len(rows)} norms: " in out
    assert Image.open(files[1]).format == "PNG"


def test_a_fully_connected_gw_is_flagged(capsys):
    run("--size", 64, 64, *FULLY_CONNECTED)
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if line.startswith("roi_heads.box_head  ")]
    assert "over the limit  g=16" in line
    assert "\nOver the limit, with more constraints than values" in out


@pytest.mark.parametrize("variable, is_colored", [(None, True), ("", True), ("1", False)])
def test_color_is_for_a_terminal_whose_user_wants_it(capsys, monkeypatch, variable, is_colored):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    if variable is not None:
        monkeypatch.setenv("NO_COLOR", variable)
    run("--size", 64, 64, *FULLY_CONNECTED)
    assert ("\033[31m" in capsys.readouterr().out) == is_colored


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--size", 0, 64], "--size 0 64"),
        (["--plot", "plot.doc"], r"plot.doc: .*\.png"),
        (["MODEL.RESNETS.NORM", "", "MODEL.FPN.NORM", ""], "has no norm"),
    ],
)
def test_a_mistake_says_what_is_wrong(arguments, message):
    with pytest.raises(UsageError, match=message):
        run(*arguments)


def test_the_script_prints_a_mistake_as_one_line_with_status_2(tmp_path):
    command = [sys.executable, str(TOOL), "--config-file", str(tmp_path / "nowhere.yaml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("analyze_config.py: error: ") and "nowhere.yaml" in line
