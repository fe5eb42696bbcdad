"""Installs a distribution below tests/packages into a folder, as an installer would, without a network.

`python tests/packages/install.py aemd-module-counter TARGET`; whoever has TARGET in its path has it.
"""

from __future__ import annotations

import shutil
import sys
import tomllib
from pathlib import Path


def install(distribution: str, target: Path, *, version: str | None = None) -> Path:
    """Copy the package and write its dist-info; returns the package's folder. What was there is replaced."""
    source = Path(__file__).parent / distribution
    project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
    package = project["name"].replace("-", "_")
    for old in [target / package, *target.glob(f"{package}-*.dist-info")]:
        shutil.rmtree(old, ignore_errors=True)
    shutil.copytree(source / package, target / package, ignore=shutil.ignore_patterns("__pycache__"))
    number = version or project["version"]
    info = target / f"{package}-{number}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {number}\n")
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return target / package


if __name__ == "__main__":
    install(sys.argv[1], Path(sys.argv[2]))
