import csv
import io
import re

import pytest

pytest.importorskip("detectron2")

import compare_runs
from gw_detectron.errors import UsageError

from ..runs.pets import forgotten, perfect, write_dataset, write_tested_run
from ..runs.synthetic import eval_record, everywhere, train_record, write_run


@pytest.fixture
def runs(tmp_path):
    for seed, ap in ((1, 40.0), (2, 43.0)):
        write_run(tmp_path / "runs" / f"bn{seed}", ap=ap, SEED=seed, **everywhere("BN"))
    write_run(tmp_path / "runs" / "gw", ap=44.0, **everywhere("GW(num_groups=16, iterations=7)"))
    # The AP of a run that was stopped does not count
    late = [train_record(119), eval_record(119, 99.0)]
    write_run(tmp_path / "runs" / "late", late, SEED=3, **everywhere("BN"))
    return str(tmp_path / "runs")


def run(*arguments):
    compare_runs.main(compare_runs.argument_parser().parse_args(list(arguments)))


def test_it_prints_the_table_and_what_is_not_in_it_and_draws_the_plot(runs, tmp_path, capsys):
    run(runs, "--plot", str(tmp_path / "plot.png"))
    out = capsys.readouterr().out
    assert "41.50 ± 2.12 |" in out
    assert "- GW(num_groups=16, iterations=7) - BN: +4.0\n" in out  # with the seed that both have
    assert f"- {runs}/late: stopped at iteration 119 of 200" in out
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_csv_has_numbers_in_cells_of_their_own_and_nothing_else(runs, capsys):
    run(runs, "--csv")
    out, err = capsys.readouterr()
    bn, gw = csv.DictReader(io.StringIO(out))
    assert (float(bn["box AP"]), float(bn["box AP std"])) == (41.5, pytest.approx(4.5**0.5))
    assert gw["norm"] == "GW(num_groups=16, iterations=7)" and gw["box AP std"] == ""
    assert "late: stopped" in err


def test_a_named_dataset_adds_the_interval_over_its_images(tmp_path, capsys):
    with forgotten("pets") as name:
        dataset = write_dataset(tmp_path / "data", name=name)
        for norm, results in (("BN", perfect()[:1]), ("GN", perfect())):
            write_tested_run(tmp_path / "runs" / norm, results, ap=50.0, **everywhere(norm))
        run(str(tmp_path / "runs"), "--dataset", *dataset)
    assert re.search(r"- GN - BN: .*, \[\d.*, 100\.0\] over images\n", capsys.readouterr().out)


def test_nothing_to_draw_is_said_after_the_table(tmp_path, capsys):
    write_run(tmp_path / "late", [train_record(119)])
    with pytest.raises(UsageError, match="nothing to draw"):
        run(str(tmp_path), "--plot", str(tmp_path / "plot.png"))
    assert "stopped at iteration 119" in capsys.readouterr().out


def test_a_picture_of_another_kind_is_one_line(runs, tmp_path):
    with pytest.raises(UsageError, match=r"plot\.doc: .* png"):
        run(runs, "--plot", str(tmp_path / "plot.doc"))
