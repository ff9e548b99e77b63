"""The IPFS store passes the store suite, with addresses by CID and by name."""

from __future__ import annotations

import pytest
from canaries import canary
from servers.gateway_thread import run_gateway
from servers.ipns_records import Owner

from streamloader.testing import StoreSuite
from streamloader.testing.faults.ipfs_dags import DagBuilder
from streamloader.testing.faults.ipfs_gateway import FaultyGateway
from streamloader.testing.stores.binding import HttpLocation


class _GatewaySuite(StoreSuite):
    """Store suite with a tree of files in a gateway. Every change makes a new tree."""

    secrets = (canary("ipfs-rpc-token"),)

    @pytest.fixture(autouse=True)
    def _gateway(self):
        self.owner = Owner()
        self.tree_files = {}
        self.dag = DagBuilder(chunk_size=100_000)
        with run_gateway(FaultyGateway(self.dag.blocks)) as self.gateway:
            self.populate({})
            yield

    def populate(self, files):
        self.tree_files.update(files)
        self.root = self.dag.tree(self.tree_files, shard_above=500)[""].cid
        for cid in list(self.dag.blocks):
            self.gateway.add_block(cid, self.dag.blocks[cid])
        self.gateway.add_record(str(self.owner.cid), self.owner.record(f"/ipfs/{self.root}"))

    def options(self):
        return {"gateways": self.gateway.url, "token": canary("ipfs-rpc-token"), "name_ttl": 0.0}


class TestIpfsStore(_GatewaySuite):
    schemes = ("ipfs",)
    root_lists = False

    def http_location(self, server_url):
        secret = canary("ipfs-rpc-token")
        gateway = server_url.replace("://", f"://me:{secret}@")
        return HttpLocation("ipfs://", str(self.dag.file(b"x").cid), {"gateways": gateway}, (secret,))

    def location(self):
        return "ipfs://", self.options()

    def path(self, name):
        return f"{self.root}/{name}"

    def address(self, name):
        return f"ipfs://{self.path(name)}"


class TestIpnsStore(_GatewaySuite):
    schemes = ("ipns",)

    def http_location(self, server_url):
        # A node of the user's own, to which requests are sent with POST.
        secret = canary("ipfs-rpc-token")
        return HttpLocation("ipns://", f"{self.owner.cid}/a.bin", {"rpc": server_url, "token": secret}, (secret,))

    def location(self):
        return f"ipns://{self.owner.cid}", self.options()


@pytest.mark.slow  # test_gateways.py reads CARs in many other ways
class TestIpfsStoreOfCars(TestIpfsStore):
    schemes = ()

    def options(self):
        return {**super().options(), "format": "car"}
