"""A daemon whose users all have the same quota: quotas_daemon.py SOCKET STATE_DIR USER QUOTA-AS-JSON."""

import json
import sys

from aemd.core.limits import Limits
from aemd.core.quota import DefaultQuotas, Quota
from aemd.service import log
from aemd.service.config import Config, prepare
from aemd.service.daemon import Daemon


def main(socket, state_dir, user, quota):
    config = Config(socket=socket, state_dir=state_dir, user=user == "user")
    log.configure(config.log_level)
    prepare(config)
    Daemon(config, Limits(), DefaultQuotas(Quota(**json.loads(quota)))).run()


main(*sys.argv[1:])
