import os
import pwd
import stat

import pytest

from aemd.service import config as module
from aemd.service.config import (
    Config,
    ConfigError,
    default_config_dir,
    default_socket,
    default_state_dir,
    prepare,
)


def test_system_socket_is_the_documented_one():
    assert default_socket(user=False, environment={}, uid=0) == "/run/aemd/aemd.sock"


def test_user_socket_is_below_the_runtime_directory(tmp_path):
    environment = {"XDG_RUNTIME_DIR": str(tmp_path)}
    assert default_socket(user=True, environment=environment, uid=7) == f"{tmp_path}/aemd/aemd.sock"


def test_user_without_runtime_directory_is_told_the_option():
    with pytest.raises(ConfigError, match="--socket"):
        default_socket(user=True, environment={}, uid=4_000_000_000)


def test_state_directory_follows_xdg_then_home():
    assert default_state_dir(user=True, environment={"XDG_STATE_HOME": "/s"}) == "/s/aemd"
    assert default_state_dir(user=True, environment={"HOME": "/h"}) == "/h/.local/state/aemd"
    with pytest.raises(ConfigError, match="--state-dir"):
        default_state_dir(user=True, environment={})


@pytest.mark.parametrize(("user", "mode"), [(False, 0o755), (True, 0o700)])
def test_directories_are_made_with_their_mode_whatever_the_umask(tmp_path, user, mode):
    before = os.umask(0o077)
    try:
        prepare(Config(socket=str(tmp_path / "a/b/s"), state_dir=str(tmp_path / "state"), user=user))
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(tmp_path / "a/b").st_mode) == mode
    assert stat.S_IMODE(os.stat(tmp_path / "state").st_mode) == 0o700


def test_existing_directory_keeps_its_mode(tmp_path):
    os.chmod(tmp_path, 0o711)
    prepare(Config(socket=str(tmp_path / "s"), state_dir=str(tmp_path)))
    assert stat.S_IMODE(os.stat(tmp_path).st_mode) == 0o711


def test_socket_path_too_long_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="107"):
        prepare(Config(socket=str(tmp_path / ("x" * 120)), state_dir=str(tmp_path)))


def test_file_in_the_place_of_a_directory_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be made|not a directory"):
        prepare(Config(socket=str(tmp_path / "file/s"), state_dir=str(tmp_path)))


@pytest.mark.parametrize("mode", [0o777, 0o775])
def test_system_daemon_refuses_a_directory_that_others_may_change(tmp_path, mode):
    os.chmod(tmp_path, mode)
    config = Config(socket=str(tmp_path / "s"), state_dir=str(tmp_path / "state"))
    with pytest.raises(ConfigError, match="writable for nobody else"):
        prepare(config)
    os.chmod(tmp_path, 0o1777)
    prepare(config)


def test_user_daemon_may_use_any_directory(tmp_path):
    os.chmod(tmp_path, 0o777)
    prepare(Config(socket=str(tmp_path / "s"), state_dir=str(tmp_path / "state"), user=True))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a directory is given to another user")
def test_system_daemon_refuses_a_directory_of_another_user(tmp_path):
    os.chown(tmp_path, 65534, 65534)
    with pytest.raises(ConfigError, match="belongs to uid 65534"):
        prepare(Config(socket=str(tmp_path / "s"), state_dir=str(tmp_path / "state")))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a directory is given to another user")
def test_root_may_serve_where_the_service_did(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SERVICE_USER", "nobody")
    os.chown(tmp_path, pwd.getpwnam("nobody").pw_uid, -1)
    prepare(Config(socket=str(tmp_path / "s"), state_dir=str(tmp_path / "state")))


def test_configuration_is_below_etc_or_the_users_own_folder():
    assert default_config_dir(user=False, environment={"HOME": "/home/a"}) == "/etc/aemd"
    assert default_config_dir(user=True, environment={"HOME": "/home/a"}) == "/home/a/.config/aemd"
    environment = {"HOME": "/home/a", "XDG_CONFIG_HOME": "/x"}
    assert default_config_dir(user=True, environment=environment) == "/x/aemd"
    assert default_config_dir(user=True, environment={}) == "", "no home, no files"
