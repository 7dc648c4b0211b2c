import ast
import importlib.metadata
import os
import re
import subprocess
import sys

import pytest

import make_environment


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout of its own, whose steps succeed without doing anything."""
    venv = tmp_path / ".venv"
    venv.mkdir()
    monkeypatch.setattr(make_environment, "VENV", venv)
    monkeypatch.setattr(make_environment, "STAMP", venv / ".ready")
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("a==1\n")
    monkeypatch.setattr(make_environment, "INPUTS", (requirements,))
    monkeypatch.setattr(make_environment, "shares_detectron2", lambda oldest_torch=False: False)
    monkeypatch.setattr(make_environment, "create_venv", lambda shared: None)
    monkeypatch.setattr(make_environment, "install_pinned", lambda oldest_torch: None)
    return tmp_path


@pytest.mark.parametrize("version", [(3, 9), (3, 13)])
def test_other_pythons_stop_with_what_was_found(version):
    with pytest.raises(make_environment.SetupError, match=f"is {version[0]}.{version[1]};"):
        make_environment.check_python(version)


@pytest.mark.parametrize("version", [(3, 10), (3, 11), (3, 12)])
def test_supported_pythons_pass(version):
    make_environment.check_python(version)


def test_second_run_has_nothing_to_do(checkout, monkeypatch):
    assert make_environment.main([]) == 0
    monkeypatch.setattr(make_environment, "install_pinned", lambda _: pytest.fail("called"))
    assert make_environment.main([]) == 0


def test_changed_requirements_are_installed(checkout):
    make_environment.main([])
    assert make_environment.is_ready()
    (checkout / "requirements.txt").write_text("a==2\n")
    assert not make_environment.is_ready()


def test_another_torch_is_another_environment(checkout):
    make_environment.main(["--oldest-torch"])
    assert make_environment.is_ready(oldest_torch=True)
    assert not make_environment.is_ready()


def test_the_oldest_torch_is_the_oldest_that_setup_accepts():
    pins = make_environment.requirements(oldest_torch=True)
    torch = re.search(r"^torch==(\S+)", pins, re.MULTILINE)[1]
    setup = (make_environment.ROOT / "setup.py").read_text()
    assert re.search(r'"torch>=([\d.]+)"', setup)[1] == torch.removesuffix(".0")
    ours = set(make_environment.requirements(oldest_torch=False).splitlines())
    changed = sorted(line for line in pins.splitlines() if line not in ours)
    assert [line.partition("==")[0] for line in changed] == ["sympy", "torch", "torchvision"]


def test_failed_step_leaves_the_environment_unfinished(checkout, monkeypatch, capsys):
    make_environment.main([])
    (checkout / "requirements.txt").write_text("a==2\n")

    def fail(oldest_torch):
        raise make_environment.SetupError("no network")

    monkeypatch.setattr(make_environment, "install_pinned", fail)
    assert make_environment.main([]) == 1
    assert capsys.readouterr().err == "make_environment: no network\n"
    assert not (checkout / ".venv" / ".ready").exists()


def test_environment_of_another_python_is_of_another_kind(checkout):
    (checkout / ".venv" / "pyvenv.cfg").write_text(
        "home = /usr/bin\ninclude-system-site-packages = false\nversion = 3.9.2\n"
    )
    assert make_environment.kind_found() == "Python 3.9, own packages"
    assert make_environment.kind_wanted() == (
        f"Python {sys.version_info[0]}.{sys.version_info[1]}, own packages"
    )


@pytest.mark.parametrize("option", ["--system-site-packages", "--symlinks"])
def test_environment_made_from_a_virtual_one_sees_what_that_sees(option, tmp_path):
    parent, child = tmp_path / "parent", tmp_path / "child"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", option, parent], check=True)
    (packages,) = parent.glob("lib/python*/site-packages")
    (packages / "detectron2.py").touch()
    make = (
        f"import sys; sys.path.insert(0, {str(make_environment.ROOT / 'tools')!r})\n"
        "import make_environment as m; m.create_venv(m.shares_detectron2()); print(m.kind_found())"
    )
    variables = {**os.environ, "VENV": str(child)}
    kind = run([parent / "bin" / "python", "-c", make], env=variables)
    assert kind.endswith("shared packages\n")
    look = "import detectron2, sys; print([p for p in sys.path if p.endswith('-packages')])"
    seen, seen_by_parent = (
        ast.literal_eval(run([venv / "bin" / "python", "-c", look])) for venv in (child, parent)
    )
    assert seen[0].startswith(str(child)) and seen[1:] == seen_by_parent


def run(command, env=None):
    result = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
    return result.stdout


def test_progress_names_big_downloads_and_returns_errors(capsys):
    output = [
        "Collecting torch==2.12.1\n",
        "  Downloading torch-2.12.1-cp311-cp311-manylinux_2_28_x86_64.whl (532.1 MB)\n",
        "Using cached triton-3.7.1-cp311-cp311-linux_x86_64.whl (197 MB)\n",
        "  Downloading torch-2.12.1-cp311-cp311-manylinux_2_28_x86_64.whl.metadata (29 kB)\n",
        "  Downloading yacs-0.1.8-py3-none-any.whl (1.4 MB)\n",
        "Installing collected packages: triton, torch\n",
        "ERROR: No space left on device\n",
    ]
    assert make_environment.show_progress(output) == ["No space left on device"]
    assert capsys.readouterr().out.split("\n") == [
        "    downloading torch-2.12.1 (532 MB)",
        "    using cached triton-3.7.1 (197 MB)",
        "    unpacking 2 packages",
        "",
    ]


def test_development_tools_are_those_that_the_requirements_name():
    text = make_environment.REQUIREMENTS.read_text()
    section = re.search(r"^# Development\n(.+?)\n\n", text, re.MULTILINE | re.DOTALL)[1]
    assert set(make_environment.DEVELOPMENT_TOOLS) == set(re.findall(r"^[\w-]+", section, re.M))


def test_pins_keep_their_conditions_and_lose_their_comments():
    one, other = make_environment.pinned("onnxruntime")
    assert "; python_version >= " in one and "; python_version < " in other
    (setuptools,) = make_environment.pinned("setuptools")
    assert re.fullmatch(r"setuptools==[\d.]+", setuptools)


@pytest.fixture
def installed(checkout, monkeypatch):
    """What pip is asked for in an environment that sees a Detectron2, with nothing else in it."""
    commands = []
    monkeypatch.setattr(
        make_environment, "shares_detectron2", lambda oldest_torch=False: not oldest_torch
    )
    monkeypatch.setattr(make_environment, "is_importable", lambda module: False)
    monkeypatch.setattr(make_environment, "pip_install", lambda *args: commands.append(args))
    return commands


def test_beside_a_found_detectron2_no_test_lacks_its_tool_and_numpy_stays(installed):
    assert make_environment.main([]) == 0
    tools, opencv, ours = installed
    assert f"numpy=={importlib.metadata.version('numpy')}" in tools
    for name in ("setuptools", *make_environment.DEVELOPMENT_TOOLS):
        assert set(make_environment.pinned(name)) <= set(tools)
    assert not any(line.startswith(("torch", "detectron2")) for line in tools)
    assert "--no-deps" in opencv and "--no-deps" in ours


def test_tools_that_are_there_are_left_as_they_are(installed, monkeypatch):
    monkeypatch.setattr(make_environment, "is_importable", lambda module: True)
    assert make_environment.main([]) == 0
    tools, _ = installed
    assert [line.partition("==")[0] for line in tools] == ["numpy", "setuptools"]


def test_the_oldest_torch_is_not_put_beside_a_found_detectron2(installed, monkeypatch):
    called = []
    monkeypatch.setattr(make_environment, "install_pinned", called.append)
    assert make_environment.main(["--oldest-torch"]) == 0
    assert called == [True] and installed == []


def test_the_oldest_torch_does_not_go_into_a_shared_environment(checkout, monkeypatch, capsys):
    assert make_environment.main([]) == 0
    monkeypatch.setattr(make_environment, "shares_detectron2", lambda oldest_torch=False: True)
    assert make_environment.main(["--oldest-torch"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "VENV=" in err
    assert (checkout / ".venv" / ".ready").is_file()
