import os
from types import SimpleNamespace

import pytest
from detectron2.config import get_cfg

from gw_detectron.engine import output_dir
from gw_detectron.engine.output_dir import claim
from gw_detectron.errors import UsageError

from ..locks import lock_held


def config(folder, **overrides):
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(folder)
    cfg.merge_from_list([x for k, v in overrides.items() for x in (k.replace("__", "."), v)])
    return cfg


@pytest.fixture
def run_there(tmp_path):
    """A directory with what a run leaves."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(config(folder, **SAME).dump())
    (folder / "metrics.json").write_text('{"iteration": 19}\n')
    return folder


SAME = {
    "MODEL__RESNETS__NORM": "GN",
    "MODEL__GW__CLASSES": "('dog', 'cat')",
    "SEED": 1,
    "DATASETS__TRAIN": "('a',)",
}


def mistake(cfg, resume=False, eval_only=False):
    with pytest.raises(UsageError) as error:
        claim(cfg, resume, eval_only)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_new_directory_is_made_and_left_empty(tmp_path):
    claim(config(tmp_path / "a" / "b"), False, False)
    assert not list((tmp_path / "a" / "b").iterdir())


def test_what_a_run_that_never_began_has_left_is_no_run(tmp_path):
    for name in ("config.yaml", "log.txt", "metrics.json", "console.txt"):
        (tmp_path / name).touch()
    claim(config(tmp_path), False, False)


def test_training_does_not_begin_where_a_run_is(run_there):
    assert "holds a run: add --resume" in mistake(config(run_there, **SAME))
    (run_there / "metrics.json").unlink()
    claim(config(run_there, **SAME), False, False)
    for name in ("last_checkpoint", "model_0000009.pth", "model_final.pth"):
        (run_there / name).write_text("model_final.pth")
        assert "holds a run" in mistake(config(run_there, **SAME))
        (run_there / name).unlink()


def test_the_last_checkpoint_has_to_be_there(run_there):
    claim(config(run_there, **SAME), True, False)
    (run_there / "last_checkpoint").write_text("model_0000009.pth\n")
    assert "model_0000009.pth, which is not there" in mistake(config(run_there, **SAME), True)
    (run_there / "model_0000009.pth").touch()
    claim(config(run_there, **SAME), True, False)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"SOLVER__MAX_ITER": 5, "SOLVER__BASE_LR": 0.1, "SOLVER__IMS_PER_BATCH": 4},
        {"MODEL__DEVICE": "cpu", "MODEL__WEIGHTS": "other.pth", "TEST__EVAL_PERIOD": 7},
        {"MODEL__GW__CLASSES": "('cat', 'dog')"},
        {"MODEL__ROI_HEADS__SCORE_THRESH_TEST": 0.5, "DATASETS__TEST": "('b',)"},
    ],
)
def test_a_run_is_resumed_with_another_schedule_or_evaluation(run_there, overrides):
    claim(config(run_there, **SAME | overrides), True, False)


@pytest.mark.parametrize(
    "overrides, named",
    [
        ({"MODEL__RESNETS__NORM": "GW"}, "MODEL.RESNETS.NORM GN, not MODEL.RESNETS.NORM GW"),
        ({"MODEL__FPN__OUT_CHANNELS": 64}, "MODEL.FPN.OUT_CHANNELS 256"),
        ({"SEED": 2}, "SEED 1, not SEED 2"),
        ({"MODEL__GW__CLASSES": "('dog', 'cow')"}, "MODEL.GW.CLASSES ['cat', 'dog'], not "),
        ({"DATASETS__TRAIN": "('b',)"}, "DATASETS.TRAIN ['a']"),
    ],
)
@pytest.mark.parametrize("resume", [True, False])
def test_another_run_is_not_resumed_and_the_keys_are_named(run_there, overrides, named, resume):
    message = mistake(config(run_there, **SAME | overrides), resume)
    assert f"{run_there} holds a run with " in message and named in message
    assert "choose another OUTPUT_DIR" in message and "--resume" not in message


def test_keys_of_another_version_do_not_matter(run_there):
    there = (run_there / "config.yaml").read_text()
    (run_there / "config.yaml").write_text(there.replace("POSITIONS:", "PLACES:"))
    claim(config(run_there, **SAME), True, False)


def test_a_run_is_evaluated_whatever_its_images_but_not_with_another_model(run_there):
    overrides = {"SEED": -1, "DATASETS__TRAIN": "()"}
    claim(config(run_there, **SAME | overrides), False, True)
    assert "GN" in mistake(config(run_there, MODEL__RESNETS__NORM="GW"), eval_only=True)


@pytest.mark.parametrize("content", [None, "MODEL: [", "- 1", ""])
def test_a_config_that_cannot_be_read_is_no_obstacle(run_there, content):
    path = run_there / "config.yaml"
    path.unlink() if content is None else path.write_text(content)
    claim(config(run_there), True, False)


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "output"):
        assert f"OUTPUT_DIR {folder} can't be written to: " in mistake(config(folder))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_without_permission_is_one_line(tmp_path):
    tmp_path.chmod(0o500)
    assert "Permission denied" in mistake(config(tmp_path))
    tmp_path.chmod(0o700)


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(output_dir.tempfile, "TemporaryFile", lambda dir: open("/dev/full", "wb"))
    assert "No space left on device" in mistake(config(tmp_path))


def test_one_process_trains_and_others_may_evaluate(run_there, monkeypatch):
    monkeypatch.setattr(output_dir, "default_setup", lambda cfg, args: None)
    cfg = config(run_there, **SAME)

    def claimed(**how):
        return output_dir.claimed(cfg, SimpleNamespace(config_file="", **how))

    (run_there / "model_0000009.pth.unfinished").touch()
    with lock_held(run_there):
        with pytest.raises(UsageError, match="OUTPUT_DIR .* is in use by process"):
            claimed(resume=True, eval_only=False).__enter__()
        with claimed(resume=False, eval_only=True):
            pass
        assert (run_there / "model_0000009.pth.unfinished").exists()
    for _ in range(2):
        with claimed(resume=True, eval_only=False):
            assert not list(run_there.glob("*.unfinished"))
