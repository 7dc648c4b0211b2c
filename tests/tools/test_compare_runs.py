import csv
import io
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("detectron2")

import compare_runs
from gw_detectron.errors import UsageError

from ..runs.synthetic import everywhere, train_record, write_run

TOOL = Path(__file__).parents[2] / "tools" / "compare_runs.py"


@pytest.fixture
def runs(tmp_path):
    write_run(tmp_path / "runs" / "bn", ap=40.0, **everywhere("BN"))
    write_run(tmp_path / "runs" / "gw", ap=44.0, **everywhere("GW"))
    write_run(tmp_path / "runs" / "late", [train_record(119)], **everywhere("GN"))
    return str(tmp_path / "runs")


def run(*arguments):
    compare_runs.main(compare_runs.argument_parser().parse_args(list(arguments)))


def test_it_prints_the_table_and_what_is_not_in_it_and_draws_the_plot(runs, tmp_path, capsys):
    run(runs, "--plot", str(tmp_path / "plot.png"))
    out = capsys.readouterr().out
    assert "+4.00 |" in out and f"- {runs}/late: stopped at iteration 119 of 200" in out
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_csv_alone_is_on_the_standard_output(runs, capsys):
    run(runs, "--csv")
    out, err = capsys.readouterr()
    assert [row["norm"] for row in csv.DictReader(io.StringIO(out))] == ["BN", "GW"]
    assert "late: stopped" in err


def test_nothing_to_draw_is_said_after_the_table(tmp_path, capsys):
    write_run(tmp_path / "late", [train_record(119)])
    with pytest.raises(UsageError, match="nothing to draw"):
        run(str(tmp_path), "--plot", str(tmp_path / "plot.png"))
    assert "stopped at iteration 119" in capsys.readouterr().out


def test_the_script_prints_a_mistake_as_one_line_with_status_2(tmp_path):
    command = [sys.executable, str(TOOL), str(tmp_path), "--plot", "plot.doc"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("compare_runs.py: error: plot.doc: ") and ".png" in line
