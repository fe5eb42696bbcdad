"""Generates the Python code of proto/: one copy for the daemon, one for the SDK.

The daemon must not import the SDK (which imports grpc), and the SDK must not need the daemon, so each
has its own copy. Both register the same descriptor files, so they load together in one process and
give the same classes. The daemon's copy has its imports rewritten to `aemd.v1`.

Usage: gen_proto.py [--check]; --check writes nothing and fails if a file would change.
"""

from __future__ import annotations

import argparse
import filecmp
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
COPIES = {"aemd": ROOT / "aemd" / "v1", "aem": ROOT / "clients" / "python" / "aem" / "v1"}
INIT = '"""The generated messages of proto/aem/v1. Made by `make proto`; do not edit."""\n'


def generate(into: Path) -> None:
    """Run protoc with the Python, grpc and type-stub plugins for every file below proto/."""
    sources = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))
    outputs = [f"--{kind}_out={into}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}", *outputs, *sources]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)


def arrange(generated: Path, package: str, into: Path) -> None:
    """Copy what `package` needs out of `generated`, with its imports made to fit."""
    into.mkdir(parents=True, exist_ok=True)
    (into / "__init__.py").write_text(INIT)
    for path in sorted(generated.glob("aem/v1/*")):
        text = path.read_text()
        if "_pb2_grpc" in path.name and (package == "aemd" or "Servicer" not in text):
            continue
        if package == "aemd":
            text = re.sub(r"^from aem\.v1 import", "from aemd.v1 import", text, flags=re.MULTILINE)
            text = re.sub(r"^import aem\.v1", "import aemd.v1", text, flags=re.MULTILINE)
            text = re.sub(r"(?<![\w.])aem\.v1\.(?=\w+_pb2)", "aemd.v1.", text)
        (into / path.name).write_text(text)


def main() -> int:
    """Generate into a scratch folder, then replace or compare both copies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check = parser.parse_args().check
    stale: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        generated = Path(scratch) / "generated"
        generated.mkdir()
        generate(generated)
        for package, home in COPIES.items():
            fresh = Path(scratch) / package
            arrange(generated, package, fresh)
            if not check:
                shutil.rmtree(home, ignore_errors=True)
                shutil.copytree(fresh, home)
                continue
            names = {p.name for p in fresh.iterdir()} | {p.name for p in home.iterdir() if p.is_file()}
            _, differ, missing = filecmp.cmpfiles(fresh, home, sorted(names), shallow=False)
            stale += [str((home / name).relative_to(ROOT)) for name in (*differ, *missing)]
    for name in stale:
        print(f"{name}: not what proto/ gives; run `make proto`", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
