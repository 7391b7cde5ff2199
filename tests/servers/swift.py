"""OpenStack Swift with its S3 API in one process: account, container, object and proxy server on one event loop.

    AWS_ACCESS_KEY_ID=account:user AWS_SECRET_ACCESS_KEY=… python -m tests.servers.swift FOLDER

prints the port of the S3 API when it answers, and ends when its standard input is closed. To be run in a process
of its own only: eventlet replaces what the standard library has of sockets and threads.
"""

from __future__ import annotations

import eventlet

eventlet.monkey_patch()

import os  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import eventlet.hubs  # noqa: E402
import eventlet.wsgi  # noqa: E402

KINDS = ("account", "container", "object")
DEVICE = "disk"
HOST = "127.0.0.1"

SWIFT_CONF = """[swift-hash]
swift_hash_path_prefix = prefix
swift_hash_path_suffix = suffix
[storage-policy:0]
name = gold
default = yes
"""

FILTERS = (
    "catch_errors gatekeeper healthcheck listing_formats bulk s3api tempauth copy slo dlo versioned_writes symlink"
)
OPTIONS = {
    "s3api": """s3_acl = false
auth_pipeline_check = false
location = us-east-1
dns_compliant_bucket_names = false
check_bucket_owner = false
min_segment_size = 5242880
""",
    "versioned_writes": "allow_object_versioning = true\n",
}
"""What the filters are told beside their names; `tempauth` gets its user from the environment."""


def proxy_conf(etc: Path, port: int, user: str, secret: str) -> str:
    """The configuration of the proxy server: the S3 API in front of one user."""
    account, _, name = user.partition(":")
    options = {**OPTIONS, "tempauth": f"user_{account}_{name} = {secret} .admin\n"}
    text = f"""[DEFAULT]
bind_ip = {HOST}
bind_port = {port}
swift_dir = {etc}
log_level = WARNING
[pipeline:main]
pipeline = {FILTERS} proxy-server
[app:proxy-server]
use = egg:swift#proxy
allow_account_management = true
account_autocreate = true
node_timeout = 60
recoverable_node_timeout = 60
"""
    return text + "".join(f"[filter:{f}]\nuse = egg:swift#{f}\n{options.get(f, '')}" for f in FILTERS.split())


def write_rings(etc: Path, ports: dict[str, int]) -> None:
    """One ring a kind of server: a single device with a single copy."""
    from swift.common.ring import RingBuilder

    for kind, port in ports.items():
        builder = RingBuilder(6, 1, 1)
        place = {"ip": HOST, "port": port, "replication_ip": HOST, "replication_port": port}
        builder.add_dev({"region": 1, "zone": 1, "device": DEVICE, "weight": 1, **place})
        builder.rebalance()
        builder.get_ring().save(str(etc / f"{kind}.ring.gz"))


def backends(etc: Path, devices: Path, ports: dict[str, int]) -> dict[str, Any]:
    """The three servers that keep what is stored."""
    from swift.account.server import AccountController
    from swift.container.server import ContainerController
    from swift.obj.server import ObjectController

    common = {"devices": str(devices), "mount_check": "false", "swift_dir": str(etc), "bind_ip": HOST}
    classes = {"account": AccountController, "container": ContainerController, "object": ObjectController}
    return {kind: classes[kind]({**common, "bind_port": str(ports[kind])}) for kind in KINDS}


class Silence:
    """An access log that keeps nothing."""

    def write(self, *words: Any) -> None:
        pass

    flush = debug = info = warning = error = write


def main(folder: Path) -> None:
    """Serves until standard input is closed."""
    etc, devices = folder / "etc", folder / "devices"
    etc.mkdir(parents=True)
    (devices / DEVICE).mkdir(parents=True)
    (etc / "swift.conf").write_text(SWIFT_CONF)

    from swift.common import storage_policy, utils

    for module in (utils, utils.config):
        module.SWIFT_CONF_FILE = str(etc / "swift.conf")
    utils.HASH_PATH_PREFIX, utils.HASH_PATH_SUFFIX = b"prefix", b"suffix"
    listening = {kind: eventlet.listen((HOST, 0), backlog=4096) for kind in (*KINDS, "proxy")}
    ports = {kind: socket.getsockname()[1] for kind, socket in listening.items()}
    write_rings(etc, {kind: ports[kind] for kind in KINDS})
    storage_policy.reload_storage_policies()

    from swift.common.wsgi import SwiftHttpProtocol, loadapp

    with tempfile.NamedTemporaryFile("w", suffix=".conf") as file:  # holds the secret: gone once it is read
        user, secret = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
        file.write(proxy_conf(etc, ports["proxy"], user, secret))
        file.flush()
        servers = {**backends(etc, devices, ports), "proxy": loadapp(file.name, global_conf={"log_name": "proxy"})}
    options = {"protocol": SwiftHttpProtocol, "keepalive": True, "log_output": False, "max_size": 256}
    for kind, server in servers.items():
        eventlet.spawn(eventlet.wsgi.server, listening[kind], server, Silence(), **options)
    print(ports["proxy"], flush=True)
    eventlet.hubs.trampoline(sys.stdin.fileno(), read=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
