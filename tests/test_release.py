"""Releases: one version everywhere, workflows, and a complete wheel."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest
import yaml
from paths import ROOT

import mae_convert

WORKFLOWS = ROOT / ".github" / "workflows"


def workflow(name):
    return yaml.safe_load((WORKFLOWS / name).read_text())


def test_the_version_is_the_same_everywhere():
    heading = re.search(r"^## (\S+) \((unreleased|\d{4}-\d\d-\d\d)\)$",
                        (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)  # fmt: skip
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert heading is not None
    assert heading[1] == citation["version"] == mae_convert.__version__
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {
        "attr": "mae_convert.__version__"
    }
    assert citation["license"] == project["project"]["license"]
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    wheels = re.findall(r"mae_convert-(\S+?)-py3", (ROOT / "README.md").read_text())
    assert set(wheels) == {mae_convert.__version__}


def test_tests_run_on_linux_and_macos_and_on_every_python_that_is_declared():
    matrix = workflow("test.yml")["jobs"]["test"]["strategy"]["matrix"]
    assert {"ubuntu-latest", "macos-latest"} <= set(matrix["os"])
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    prefix = "Programming Language :: Python :: "
    assert matrix["python"] == [c.removeprefix(prefix) for c in classifiers if prefix in c]


def test_a_release_is_published_without_a_stored_secret():
    text = (WORKFLOWS / "publish.yml").read_text()
    publish = workflow("publish.yml")
    assert "secrets." not in text
    assert "password" not in re.sub(r"#.*", "", text)
    job = publish["jobs"]["publish"]
    assert job["permissions"] == {"id-token": "write"}
    assert job["needs"] == "build"
    assert "id-token" not in str(publish["jobs"]["build"].get("permissions", {}))
    assert any("gh-action-pypi-publish" in step.get("uses", "") for step in job["steps"])


@pytest.mark.slow
def test_wheel_contains_all_files_that_the_commands_need(tmp_path):
    """The wheel is built by setuptools itself and unpacked, as pip does it, in another folder."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    for package in ("mae_convert", "reference_models"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, source / package, ignore=ignored)
    build = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = (source / "dist").glob("*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    assert not list(installed.glob("tests*"))
    tracked = {p.relative_to(ROOT) for p in ROOT.glob("mae_convert/**/*.py")}
    assert tracked == {p.relative_to(installed) for p in installed.glob("mae_convert/**/*.py")}
    code = (
        f"import sys; sys.path.insert(0, {str(installed)!r}); import mae_convert;"
        f"assert mae_convert.__file__.startswith({str(installed)!r});"
        "from mae_convert.cli.main import main; main(['demo', '--output', 'demo'])"
    )
    process = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, check=False, capture_output=True,
        text=True, env={**os.environ, "PYTHONPATH": str(installed)},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert "PASSED and proven" in process.stdout
    assert (tmp_path / "demo" / "reconstruction.png").is_file()
