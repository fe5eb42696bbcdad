from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from aem.v1 import module_pb2

from aemd.cli.completion import SHELLS, parameter_values, script
from aemd.cli.ctl import cli

BIN = str(Path(sys.executable).parent)
NOBODY = "unix:/nonexistent/aemd.sock"

# Calls the completion function as bash does when TAB is pressed; bash breaks words at = and :.
ASK = """
eval "$(aemctl completion bash)"
COMP_LINE=$1 COMP_POINT=${#1} COMP_WORDS=() COMP_CWORD=0
_aemctl_completion aemctl
printf '%s\\n' "${COMPREPLY[@]}"
"""


def ask(line: str, address: str = NOBODY) -> list[str]:
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "AEMD_ADDRESS": address}
    answer = subprocess.run(
        ["bash", "--norc", "-c", ASK, "bash", line],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert answer.stderr == ""
    return answer.stdout.split("\n")[:-1]


def test_bash_completes_verbs_options_and_choices() -> None:
    assert ask("aemctl sta") == ["start-job", "status"]
    assert ask("aemctl -o js") == ["json", "jsonl"]
    assert "--one-shot" in ask("aemctl watch timer --one")
    assert ask("aemctl completion ") == ["bash", "zsh", "fish"]
    assert ask("aemctl pol") == ["policy"]
    assert ask("aemctl policy ") == ["explain", "check"]
    assert "--uid" in ask("aemctl policy explain --u")
    assert ask("AEMD_ADDRESS=x aemctl stat") == ["status"]


def test_bash_without_a_daemon_offers_nothing_and_is_silent() -> None:
    assert ask("aemctl watch ") == [""]
    assert ask("aemctl watch timer ev") == [""]
    assert ask("aemctl show-job ") == [""]


@pytest.mark.parametrize("shell", SHELLS)
def test_script_is_what_its_shell_takes(shell: str) -> None:
    text = script(cli, shell)
    assert "_aemctl_completion" in text
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    check = {"bash": ["bash", "-n"], "zsh": ["zsh", "-n"], "fish": ["fish", "--no-execute"]}[shell]
    subprocess.run(check, input=text, text=True, check=True, timeout=30)


def test_completion_script_does_not_load_grpc() -> None:
    code = (
        "import sys; from aemd.cli.ctl import run; run(['completion', 'bash']); run(['watch', '--help']);"
        "sys.exit(any(name in sys.modules for name in ('grpc', 'google.protobuf', 'aem')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=30)


def test_values_that_can_be_counted() -> None:
    module = module_pb2.Module(
        parameters=[
            module_pb2.Parameter(name="clock", kind=module_pb2.PARAMETER_KIND_CHOICE, choices=["a", "b"]),
            module_pb2.Parameter(name="on", kind=module_pb2.PARAMETER_KIND_TRUTH),
            module_pb2.Parameter(name="every", kind=module_pb2.PARAMETER_KIND_DURATION),
        ]
    )
    assert parameter_values(module, "clock") == ["a", "b"]
    assert parameter_values(module, "on") == ["yes", "no"]
    assert parameter_values(module, "every") == []
    assert parameter_values(module, "other") == []
