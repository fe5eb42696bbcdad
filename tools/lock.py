"""Locks the Python packages that the project runs, tests and measures with, each with its hashes.

Writes requirements/*.txt. They name no index: where packages come from is the machine's own setting.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
FLAGS = [
    "--quiet", "--generate-hashes", "--no-header", "--no-annotate", "--no-emit-index-url",
    "--no-emit-find-links", "--upgrade", "--python-version", "3.11",
]  # fmt: skip


def lock(name: str, *inputs: Path | str) -> None:
    """Resolve `inputs` into requirements/NAME.txt."""
    subprocess.run(
        [
            Path(sys.executable).with_name("uv"),
            "pip",
            "compile",
            *FLAGS,
            *map(str, inputs),
            "-o",
            REQUIREMENTS / f"{name}.txt",
        ],
        check=True,
    )


def main() -> int:
    """Lock everything."""
    with tempfile.TemporaryDirectory() as scratch:
        daemon = (
            Path(scratch) / "pyproject.toml"
        )  # without the SDK, which is not on any index while it is built here
        daemon.write_text(
            re.sub(r'^ *"aem-client.*\n', "", (ROOT / "pyproject.toml").read_text(), flags=re.M)
        )
        projects = [daemon, ROOT / "clients" / "python" / "pyproject.toml"]
        lock("run", *projects, REQUIREMENTS / "build.in")
        lock("service", *projects, "-c", REQUIREMENTS / "run.txt")  # what runs, without what builds it
        lock(
            "dev",
            *projects,
            REQUIREMENTS / "build.in",
            REQUIREMENTS / "dev.in",
            "-c",
            REQUIREMENTS / "run.txt",
        )
    lock("bench", REQUIREMENTS / "bench.in", "-c", REQUIREMENTS / "dev.txt")
    lock("proto", REQUIREMENTS / "proto.in")
    return 0


if __name__ == "__main__":
    sys.exit(main())
