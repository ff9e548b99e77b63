"""The real servers that the tests of stores talk to, started once a run."""

from __future__ import annotations

from servers.jsipfs_fixture import jsipfs_node
from servers.nginx_fixture import nginx_server
from servers.seaweed_fixture import seaweed_server
from servers.sshd_fixture import own_ssh_server, second_ssh_server, ssh_server

__all__ = ["jsipfs_node", "nginx_server", "own_ssh_server", "seaweed_server", "second_ssh_server", "ssh_server"]
