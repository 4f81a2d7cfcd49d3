"""Every library folder is imported as `agentrl.<folder>`; three places must agree on that."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("envs", "sandbox", "tools", "trainers")
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_every_package_on_disk_is_shipped() -> None:
    below = {
        ".".join(("agentrl", *path.parent.relative_to(ROOT).parts))
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("__init__.py")
    }
    inside = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "agentrl").glob("**/__init__.py")
        if not any((ROOT / "agentrl" / folder) in path.parents for folder in FOLDERS)
    }
    assert set(SETUPTOOLS["packages"]) == below | inside


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="only a checkout has the links")
@pytest.mark.parametrize("folder", FOLDERS)
def test_link_and_mapping_agree(folder: str) -> None:
    assert SETUPTOOLS["package-dir"][f"agentrl.{folder}"] == folder
    link = ROOT / "agentrl" / folder
    assert link.is_symlink() or not link.is_dir(), f"{link} is a copy of {folder}/, not a link"
    # Git without symlink support checks a link out as a text file that holds its target.
    target = link.readlink() if link.is_symlink() else Path(link.read_text())
    assert target == Path("..") / folder


def run_python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    return result.stdout


def test_environments_and_tools_load_no_deep_learning_stack() -> None:
    modules = "agentrl, agentrl.envs, agentrl.tools, agentrl.sandbox, agentrl.rollout.collector, agentrl.trainers"
    loaded = run_python(f"import sys, {modules}; print(sorted({{'torch', 'transformers', 'vllm'}} & set(sys.modules)))")
    assert loaded.strip() == "[]"


def test_no_folder_is_imported_under_a_second_name() -> None:
    code = "import sys, agentrl.envs, agentrl.trainers.training; print([m for m in sys.modules if m in {names!r}])"
    assert run_python(code.format(names=FOLDERS)).strip() == "[]"


def test_public_names_resolve() -> None:
    import agentrl

    assert all(getattr(agentrl, name) is not None for name in agentrl.__all__)
