"""Configs: one that comes with somebody's run or download runs no code, through whichever tool."""

import runpy
import sys
from pathlib import Path

import detectron2.model_zoo
import pytest
import yaml
from detectron2.config import get_cfg

from gw_detectron.config import CONFIGS, choose_device, load_config, stated_keys
from gw_detectron.errors import UsageError

TOOLS = Path(__file__).parents[1] / "tools"
RETINANET = Path(detectron2.model_zoo.__file__).parent / "configs" / "Base-RetinaNet.yaml"
QUICKSTART = CONFIGS / "quickstart" / "faster_rcnn_R_18_FPN_gw.yaml"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, whose payload.yaml makes a folder `ran` where its tag is taken."""
    monkeypatch.chdir(tmp_path)
    payload = "SOLVER:\n  GAMMA: !!python/object/apply:os.makedirs ['ran', 511, true]\n"
    (tmp_path / "payload.yaml").write_text(payload)
    return tmp_path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def based_on(folder, depth):
    """A config that inherits from payload.yaml through so many files."""
    path = "payload.yaml"
    for level in range(depth):
        path = write(folder / f"{level}.yaml", f"_BASE_: {path}\n")
    return path


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_a_tag_is_refused_in_one_line_at_any_depth(folder, depth):
    with pytest.raises(UsageError, match="payload.yaml has a YAML tag.*add --trust-config") as e:
        load_config(based_on(folder, depth))
    assert "\n" not in str(e.value) and not (folder / "ran").exists()
    with pytest.raises(UsageError, match="--trust-config"):
        stated_keys(based_on(folder, depth), [])
    assert not (folder / "ran").exists()


def test_a_tag_is_taken_where_it_is_trusted(folder):
    load_config(based_on(folder, 1), trust=True)
    assert (folder / "ran").exists()


def test_detectron2s_own_tags_are_taken(folder):
    assert load_config(str(RETINANET)).MODEL.ANCHOR_GENERATOR.SIZES[0][0] == 32
    mine = write(folder / "mine.yaml", f"_BASE_: {RETINANET}\nSEED: 3\n")
    cfg = load_config(mine, ["SOLVER.MAX_ITER", "7"])
    assert (cfg.MODEL.META_ARCHITECTURE, cfg.SEED, cfg.SOLVER.MAX_ITER) == ("RetinaNet", 3, 7)
    assert {"SEED", "SOLVER.MAX_ITER", "MODEL.RETINANET.NUM_CLASSES"} >= stated_keys(
        mine, ["SOLVER.MAX_ITER", "7"]
    ) - stated_keys(str(RETINANET), [])


def test_a_link_to_detectron2s_config_does_not_bring_a_base_from_beside_it(folder):
    (folder / "configs").mkdir()
    (folder / "configs" / "linked.yaml").symlink_to(RETINANET)
    write(folder / "configs" / "Base-RCNN-FPN.yaml", (folder / "payload.yaml").read_text())
    with pytest.raises(UsageError, match="--trust-config"):
        load_config("configs/linked.yaml")
    assert not (folder / "ran").exists()


def test_an_address_is_not_trusted_from_within_the_trusted_folder(monkeypatch):
    from gw_detectron import config

    monkeypatch.chdir(CONFIGS)
    assert config._is_ours("quickstart/Base-R-18-FPN.yaml")
    assert not config._is_ours("https://example.org/Base.yaml")
    assert not config._is_ours("../payload.yaml")


RUN = "RUN"  # a run's folder, whose config.yaml inherits from the payload
COMMANDS = {
    "train_net.py": ["--config-file", "child.yaml"],
    "pretrain_imagenet.py": ["--config-file", "child.yaml"],
    "compare_norms.py": ["--config-file", "child.yaml", "--norms", "GN", "--output", "out"],
    "analyze_config.py": ["--config-file", "child.yaml"],
    "benchmark.py layers": ["--config-file", "child.yaml"],
    "benchmark.py model": ["--config-file", "child.yaml"],
    "export_model.py": ["--config-file", "child.yaml", "--format", "torchscript", "--output", "o"],
    "visualize.py": [RUN, "--on", "gw_shapes_val", "--output", "out"],
    "diagnose.py": [RUN, "--on", "gw_shapes_val", "--output", "out"],
}


@pytest.mark.parametrize("tool", COMMANDS)
def test_no_tool_runs_the_code_of_a_config(tool, folder, monkeypatch, capsys):
    write(folder / "child.yaml", "_BASE_: payload.yaml\n")
    config = load_config(str(QUICKSTART), ["MODEL.WEIGHTS", ""]).dump()
    write(folder / RUN / "config.yaml", f"_BASE_: ../payload.yaml\n{config}")
    write(folder / RUN / "model_final.pth", "")
    script, *command = tool.split()
    monkeypatch.setattr(sys, "argv", [script, *command, *COMMANDS[tool]])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(TOOLS / script), run_name="__main__")
    assert not (folder / "ran").exists()
    assert end.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "payload.yaml has a YAML tag" in line and "--trust-config" in line


def test_what_a_run_writes_as_its_config_has_no_tags():
    yaml.safe_load(load_config(str(RETINANET)).dump())


# ---- Where a model runs, with the GPUs that a test pretends there are ----------------------------


@pytest.fixture
def choose(monkeypatch):
    """choose_device on a config, as (what it returns, MODEL.DEVICE after it)."""

    def call(has_gpu, device, num_processes):
        monkeypatch.setattr("torch.cuda.is_available", lambda: has_gpu)
        cfg = get_cfg()
        cfg.MODEL.DEVICE = device
        return choose_device(cfg, num_processes), cfg.MODEL.DEVICE

    return call


@pytest.mark.parametrize(
    "has_gpu, device, num_processes, expected",
    [
        (True, "cuda", 1, (False, "cuda")),
        (True, "cuda:1", 2, (False, "cuda:1")),
        (True, "cpu", 1, (False, "cpu")),
        (False, "cuda", 1, (True, "cpu")),
        (False, "cpu", 2, (False, "cpu")),
    ],
)
def test_it_is_the_cpu_where_there_is_no_gpu(choose, has_gpu, device, num_processes, expected):
    assert choose(has_gpu, device, num_processes) == expected


@pytest.mark.parametrize(
    "has_gpu, device, message",
    [
        (False, "cuda", "2 processes need a GPU each, and this machine has none; add MODEL.DEVICE"),
        (True, "cpu", "MODEL.DEVICE cpu: 2 processes would share the GPUs"),
    ],
)
def test_several_processes_are_not_put_where_they_cannot_run(choose, has_gpu, device, message):
    with pytest.raises(UsageError, match=message):
        choose(has_gpu, device, 2)
