"""The map-style data set over a gateway, and over a real node."""

from __future__ import annotations

import io
import pickle
import tarfile

import pytest
from ipfs_data import build, make_files, make_tar, make_zip, serve
from tiers import fast_first
from torch.utils.data import DataLoader, DistributedSampler

from streamloader.datasets.ipfs.dataset import IPFSDataset, IPFSFiles
from streamloader.datasets.ipfs.objects import IPFSObject, RemoteFileType
from streamloader.errors import (
    CorruptContainer,
    DatasetNotFound,
    IntegrityError,
    NotFound,
    NotSupported,
    StreamloaderError,
    Unreachable,
)
from streamloader.testing.faults.ipfs_dags import DagBuilder

FILES = make_files(12)
TYPE = RemoteFileType
NO_RETRY = {"retry": None}


class Named(IPFSDataset):
    """The use of the reference system."""

    def __init__(self, ipfs_objs, ipfs_api_address, **options):
        super().__init__(ipfs_objs, ipfs_api_address, **options)

    def __getitem__(self, idx):
        file_name, file_obj = super(IPFSDataset, self).__getitem__(idx)
        return file_name, len(file_obj), file_obj[:4]


@pytest.fixture(scope="module")
def world():
    """A gateway with one object of each type."""
    dag = DagBuilder(chunk_size=1000)
    listed = {"metadata.txt": "\n".join(reversed(FILES)).encode(), **FILES}
    folders = {"listed": dag.tree(listed)[""], "plain": dag.tree(FILES, shard_above=1)[""]}
    archives = {"tar": make_tar(FILES), "gz": make_tar(FILES, "w:gz"), "zip": make_zip(FILES), "blob": bytes(5000)}
    cids = {name: str(entry.cid) for name, entry in folders.items()}
    cids |= {name: str(dag.file(data).cid) for name, data in archives.items()}
    with serve(dag) as gateway:
        yield gateway, cids


def dataset_of(world, *kinds, **options):
    gateway, cids = world
    objects = [IPFSObject(f"{gateway.url}/ipfs/{cids[name]}", kind) for name, kind in kinds]
    return IPFSDataset(objects, **options)


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("tar", TYPE.TAR, FILES),
        ("gz", TYPE.TAR, FILES),
        ("zip", TYPE.ZIP, FILES),
        ("listed", TYPE.FOLDER, dict(reversed(FILES.items()))),
        ("plain", TYPE.FOLDER, dict(sorted(FILES.items()))),
    ],
)
def test_samples_are_names_and_contents(world, name, kind, expected):
    dataset = dataset_of(world, (name, kind))
    root = f"{world[0].url}/ipfs/{world[1][name]}/" if kind is TYPE.FOLDER else ""
    assert len(dataset) == len(expected)
    assert [dataset[number] for number in range(len(dataset))] == [(root + key, data) for key, data in expected.items()]
    assert dataset[-1] == dataset[len(dataset) - 1]
    assert [dataset.name(number) for number in range(3)] == [root + key for key in list(expected)[:3]]
    with pytest.raises(IndexError):
        dataset[len(dataset)]
    dataset.close()
    assert dataset[0][1] == next(iter(expected.values()))


def test_objects_follow_each_other(world):
    dataset = dataset_of(world, ("blob", TYPE.PLAIN), ("zip", TYPE.ZIP), ("blob", TYPE.PLAIN_STREAM))
    assert len(dataset) == len(FILES) + 2
    blob = (f"{world[0].url}/ipfs/{world[1]['blob']}", bytes(5000))
    assert [dataset[0], *(dataset[number] for number in range(1, 13)), dataset[13]] == [blob, *FILES.items(), blob]


def test_derived_classes_go_on_with_the_class_above(world):
    gateway, cids = world
    objects = [IPFSObject(f"ipfs://{cids['zip']}", TYPE.ZIP)]
    dataset = Named(objects, None, storage_options={"gateways": gateway.url})
    assert IPFSDataset.__bases__ == (IPFSFiles,)
    assert len(dataset) == len(FILES)  # used before the fork
    expected = [(name, len(data), data[:4]) for name, data in FILES.items()]
    for workers in (0, 2):
        loader = DataLoader(dataset, batch_size=5, num_workers=workers, collate_fn=list)
        assert [sample for batch in loader for sample in batch] == expected
    shuffled = DataLoader(dataset, batch_size=None, shuffle=True, num_workers=0)
    assert sorted(tuple(sample) for sample in shuffled) == sorted(expected)
    shares = [list(DistributedSampler(dataset, 2, rank, shuffle=True)) for rank in range(2)]
    assert sorted(shares[0] + shares[1]) == list(range(len(FILES)))


def test_a_batch_is_read_at_the_same_time(world):
    """Each member in blocks of its own: they are requested together, so that the batch takes as long as one of them."""
    dataset = dataset_of(world, ("zip", TYPE.ZIP), cache_bytes=0)
    numbers = [5, 2, 2, 11, 0]
    assert dataset.__getitems__(numbers) == [list(FILES.items())[number] for number in numbers]
    assert not dataset._advance_reads
    with pytest.raises(IndexError):
        dataset.__getitems__([0, 99])
    assert not dataset._advance_reads


def test_a_pickled_data_set_needs_no_second_listing(world):
    gateway, _ = world
    dataset = dataset_of(world, ("zip", TYPE.ZIP), ("listed", TYPE.FOLDER))
    first = dataset[3]
    there = pickle.loads(pickle.dumps(dataset))
    before = len(gateway.requests)
    assert len(there) == 2 * len(FILES)
    assert len(gateway.requests) == before
    assert there[3] == first


def test_members_are_read_by_span():
    """One member of a large archive needs its blocks, the directory, and no others."""
    files = {f"{number}.bin": bytes([number]) * 600_000 for number in range(10)}
    dag = DagBuilder(chunk_size=100_000)
    entry = dag.file(make_zip(files, 0))
    with serve(dag) as gateway:
        dataset = IPFSDataset(IPFSObject(f"{gateway.url}/ipfs/{entry.cid}", TYPE.ZIP))
        assert dataset[7] == ("7.bin", files["7.bin"])
        assert len(gateway.sent) < 25  # of 61 blocks


@pytest.mark.parametrize(
    "fault", fast_first(["flipped byte", "another valid block", "truncated with 200", "extra blocks"])
)
def test_a_lying_gateway_never_reaches_the_loop(fault):
    dag = DagBuilder(chunk_size=1000)
    entry = dag.file(make_tar(FILES))
    victim = dag.leaves(entry)[9]
    with serve(dag, fault, victim=victim) as gateway:
        dataset = IPFSDataset(IPFSObject(f"{gateway.url}/ipfs/{entry.cid}", TYPE.TAR), storage_options=NO_RETRY)
        with pytest.raises(IntegrityError) as caught:
            len(dataset)
        assert caught.value.details["object"] == f"{gateway.url}/ipfs/{entry.cid}"
        assert caught.value.offset == 9000
        with serve(dag) as honest:
            both = {"gateways": [gateway.url, honest.url], **NO_RETRY}
            dataset = IPFSDataset(IPFSObject(str(entry.cid), TYPE.TAR), storage_options=both)
            assert [dataset[number] for number in range(len(FILES))] == list(FILES.items())


def test_an_error_names_object_and_member():
    dag, cids = build(blob=b"x")
    entry = dag.tree({"metadata.txt": b"there\nnot/there", "there": b"1"})[""]
    with serve(dag) as gateway:
        url = f"{gateway.url}/ipfs/{entry.cid}"
        dataset = IPFSDataset([IPFSObject(url, TYPE.FOLDER)], storage_options=NO_RETRY)
        assert dataset[0] == (f"{url}/there", b"1")
        with pytest.raises(NotFound) as caught:
            dataset[1]
        assert (caught.value.details["object"], caught.value.details["member"]) == (url, "not/there")
        assert caught.value.address == f"ipfs://{entry.cid}/not/there"
        with pytest.raises(DatasetNotFound, match="no folder"):
            len(IPFSDataset(IPFSObject(f"{gateway.url}/ipfs/{cids['blob']}", TYPE.FOLDER), storage_options=NO_RETRY))


def test_bad_objects_are_left_out_on_request():
    dag, cids = build(good=make_tar(FILES), cut=make_tar(FILES)[:3000], bz2=make_tar(FILES, "w:bz2"))
    folder = dag.tree({"metadata.txt": b"../x\na", "a": b"1"})[""]
    with serve(dag) as gateway:
        objects = [IPFSObject(f"{gateway.url}/ipfs/{cids[name]}", TYPE.TAR) for name in ("cut", "good", "bz2")]
        objects.append(IPFSObject(f"{gateway.url}/ipfs/{folder.cid}", TYPE.FOLDER))
        for each, error in zip(objects, (CorruptContainer, None, NotSupported, StreamloaderError), strict=True):
            if error is not None:
                with pytest.raises(error):
                    len(IPFSDataset(each, storage_options=NO_RETRY))
        dataset = IPFSDataset(objects, on_error="skip", storage_options=NO_RETRY)
        assert len(dataset) == len(FILES) + 1
        assert [dataset[number] for number in range(len(FILES))] == list(FILES.items())
        assert [(each.object, each.member) for each in dataset.skipped] == [
            (objects[0].url, None), (objects[2].url, None), (objects[3].url, "../x"),
        ]  # fmt: skip
    dataset = IPFSDataset(objects, on_error="skip", storage_options=NO_RETRY)
    with pytest.raises(Unreachable):  # which says nothing about the objects
        len(dataset)


def test_what_is_no_ordinary_file_is_left_out(caplog):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind in (("link", tarfile.SYMTYPE), ("../up", tarfile.REGTYPE), ("dir", tarfile.DIRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "x" if kind == tarfile.SYMTYPE else ""
            tar.addfile(info)
        tar.addfile(tarfile.TarInfo("good"))
    dag, cids = build(tar=out.getvalue())
    with serve(dag) as gateway:
        dataset = IPFSDataset(IPFSObject(f"{gateway.url}/ipfs/{cids['tar']}", TYPE.TAR))
        assert [dataset[number] for number in range(len(dataset))] == [("good", b"")]
    assert "2 members are not ordinary files" in caplog.text


def test_a_real_node_through_its_api_and_its_gateway(jsipfs_node):
    added = jsipfs_node.add(
        {"set/metadata.txt": b"b\na", "set/a": b"1", "set/b": b"2" * 300_000, "z.zip": make_zip(FILES)}
    )
    multiaddr = f"/ip4/127.0.0.1/tcp/{jsipfs_node.rpc_port}"
    objects = [IPFSObject(f"ipfs://{added['set']}", TYPE.FOLDER), IPFSObject(f"ipfs://{added['z.zip']}", TYPE.ZIP)]
    expected = [(f"ipfs://{added['set']}/b", b"2" * 300_000), (f"ipfs://{added['set']}/a", b"1"), *FILES.items()]
    for address in (multiaddr, jsipfs_node.rpc):
        dataset = IPFSDataset(objects, address)
        assert [dataset[number] for number in range(len(dataset))] == expected
    # Its gateway sends plain files for every format: blocks of raw bytes can be verified, others are refused.
    raw = jsipfs_node.add_one(make_zip(FILES), cid_version=1, raw_leaves=True)
    dataset = IPFSDataset(IPFSObject(f"{jsipfs_node.gateway}/ipfs/{raw}", TYPE.ZIP))
    assert [dataset[number] for number in range(len(dataset))] == list(FILES.items())
    with pytest.raises(StreamloaderError):
        len(
            IPFSDataset(IPFSObject(f"{jsipfs_node.gateway}/ipfs/{added['set']}", TYPE.FOLDER), storage_options=NO_RETRY)
        )
    unverified = IPFSDataset(
        IPFSObject(f"{jsipfs_node.gateway}/ipfs/{added['set']}", TYPE.FOLDER), storage_options={"verify": "none"}
    )
    assert [unverified[number][1] for number in range(len(unverified))] == [b"2" * 300_000, b"1"]
