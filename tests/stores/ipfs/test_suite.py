"""Files of IPFS pass the suite of stores, by CID and by name."""

from __future__ import annotations

import pytest
from canaries import canary
from servers.gateway_thread import served
from servers.ipns_records import Owner

from streamloader.testing import StoreSuite
from streamloader.testing.faults.ipfs_dags import DagBuilder
from streamloader.testing.faults.ipfs_gateway import FaultyGateway


class _Served(StoreSuite):
    """What is populated is a tree of files in a gateway; every change makes another tree."""

    secrets = (canary("ipfs-rpc-token"),)

    @pytest.fixture(autouse=True)
    def _gateway(self):
        self.owner = Owner()
        self.kept = {}
        self.dag = DagBuilder(chunk_size=100_000)
        with served(FaultyGateway(self.dag.blocks)) as self.gateway:
            self.populate({})
            yield

    def populate(self, files):
        self.kept.update(files)
        self.root = self.dag.tree(self.kept, shard_above=500)[""].cid
        for cid in list(self.dag.blocks):
            self.gateway.add_block(cid, self.dag.blocks[cid])
        self.gateway.add_record(str(self.owner.cid), self.owner.record(f"/ipfs/{self.root}"))

    def options(self):
        return {"gateways": self.gateway.url, "token": canary("ipfs-rpc-token"), "name_seconds": 0.0}


class TestIpfsStore(_Served):
    schemes = ("ipfs",)
    root_lists = False

    def location(self):
        return "ipfs://", self.options()

    def path(self, name):
        return f"{self.root}/{name}"

    def address(self, name):
        return f"ipfs://{self.path(name)}"


class TestIpnsStore(_Served):
    schemes = ("ipns",)

    def location(self):
        return f"ipns://{self.owner.cid}", self.options()


@pytest.mark.slow  # test_ipfs_gateways.py reads CARs in many other ways
class TestIpfsStoreOfCars(TestIpfsStore):
    schemes = ()

    def options(self):
        return {**super().options(), "format": "car"}
