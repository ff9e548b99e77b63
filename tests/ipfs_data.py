"""Objects on IPFS for the tests of data sets: folders and archives in blocks, behind a gateway in a thread."""

from __future__ import annotations

import contextlib
import io
import tarfile
import zipfile

from servers.gateway_thread import run_gateway

from streamloader.testing.faults.ipfs_dags import DagBuilder
from streamloader.testing.faults.ipfs_gateway import FaultyGateway


def make_files(count, size=100, prefix="f"):
    """Return names and contents, some in folders."""
    return {
        f"{'ab'[number % 2]}/{prefix}{number:03}.bin": bytes((number * 7 + at) % 251 for at in range(size + number))
        for number in range(count)
    }


def make_tar(files, mode="w"):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def make_zip(files, method=zipfile.ZIP_DEFLATED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


@contextlib.contextmanager
def serve(dag, fault=None, **options):
    """Serve the blocks of a DagBuilder on a free port."""
    with run_gateway(FaultyGateway(dag.blocks, fault, **options)) as gateway:
        yield gateway


def build(**blobs):
    """Return a DagBuilder with files, and the CID of each."""
    dag = DagBuilder(chunk_size=1000)
    return dag, {name: str(dag.file(data).cid) for name, data in blobs.items()}
