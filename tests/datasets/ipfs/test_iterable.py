"""The iterable data set over a gateway, and over a real node: order, parts, states, bad samples."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import math

import pytest
from ipfs_data import build, make_files, make_tar, make_zip, serve
from tiers import only_fast
from torch.utils.data import DataLoader, IterableDataset

from streamloader.datasets.ipfs.iterable import IPFSIterableDataset
from streamloader.datasets.ipfs.objects import IPFSObject, RemoteFileType
from streamloader.datasets.ipfs.ordered_prefetch import ByteBudget, OrderedPrefetcher, PendingRead
from streamloader.errors import (
    ConfigError,
    CorruptContainer,
    IntegrityError,
    NotFound,
    StateError,
    Unreachable,
)
from streamloader.testing.faults.ipfs_dags import DagBuilder

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine with few cores

FILES = make_files(7)
MORE = make_files(5, prefix="g")
TYPE = RemoteFileType
NO_RETRY = {"retry": None}


@pytest.fixture(scope="module")
def world():
    """A gateway, and the objects of each type with their samples."""
    dag = DagBuilder(chunk_size=500)
    folder = dag.tree({"metadata.txt": "\n".join(MORE).encode(), **MORE})[""]
    archives = {
        "tar": (make_tar(FILES), TYPE.TAR, FILES),
        "gz": (make_tar(MORE, "w:gz"), TYPE.TAR, MORE),
        "zip": (make_zip(FILES), TYPE.ZIP, FILES),
    }
    with serve(dag) as gateway:

        def make(name, cid, kind, samples):
            url = f"{gateway.url}/ipfs/{cid}"
            return IPFSObject(url, kind), [(key or url, data) for key, data in samples.items()]

        objects = {name: make(name, dag.file(data).cid, kind, files) for name, (data, kind, files) in archives.items()}
        url = f"{gateway.url}/ipfs/{folder.cid}"
        objects["folder"] = make(
            "folder", folder.cid, TYPE.FOLDER, {f"{url}/{name}": data for name, data in MORE.items()}
        )
        for name, kind in (("blob", TYPE.PLAIN), ("stream", TYPE.PLAIN_STREAM)):
            objects[name] = make(name, dag.file(name.encode() * 400).cid, kind, {"": name.encode() * 400})
        for cid, block in dag.blocks.items():
            gateway.add_block(cid, block)
        yield gateway, objects


def objects_of(world, *names):
    chosen = [world[1][name] for name in names or world[1]]
    return [each for each, _ in chosen], [sample for _, samples in chosen for sample in samples]


def test_samples_of_every_type_come_in_order(world):
    objects, expected = objects_of(world)
    dataset = IPFSIterableDataset(objects, None)
    assert list(dataset) == expected
    assert dataset.epoch == 1
    for prefetch_bytes, requests in ((0, 1), (700, 2), (1 << 30, 64)):
        assert list(IPFSIterableDataset(objects, prefetch_bytes=prefetch_bytes, prefetch_requests=requests)) == expected
    with pytest.raises(ConfigError, match="prefetch_requests"):
        IPFSIterableDataset(objects, prefetch_requests=0)
    with pytest.raises(ConfigError, match="rank"):
        IPFSIterableDataset(objects, rank=1)


def test_objects_are_shuffled_each_epoch(world):
    objects, expected = objects_of(world)
    dataset = IPFSIterableDataset(objects, None, True, seed=3)
    epochs = [list(dataset) for _ in range(3)]
    assert all(sorted(epoch) == sorted(expected) for epoch in epochs)
    assert len({str(epoch) for epoch in epochs}) == 3
    again = IPFSIterableDataset(objects, None, shuffle=True, seed=3)
    again.set_epoch(2)
    assert list(again) == epochs[2]
    assert list(IPFSIterableDataset(objects, shuffle_urls=True, shuffle=False)) == expected


def shares_of(objects, ranks, workers):
    """Return the samples of each worker of each rank."""
    shares = []
    for rank in range(ranks):
        dataset = IPFSIterableDataset(objects, None, True, seed=1, rank=rank, world_size=ranks)
        loader = DataLoader(Marked(dataset), batch_size=None, num_workers=workers)
        samples = [(worker, tuple(sample)) for worker, sample, _ in loader]
        shares += [[sample for number, sample in samples if number == worker] for worker in range(max(1, workers))]
    return shares


class Marked(IterableDataset):
    """Adds the number of the worker, and the state after each sample."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __iter__(self):
        from streamloader.datasets.workers import get_dataloader_worker

        for sample in self.dataset:
            yield get_dataloader_worker().number, sample, json.dumps(self.dataset.state_dict())


@pytest.mark.parametrize(
    ("ranks", "workers"), only_fast(itertools.product((1, 2, 3), (0, 1, 2, 4)), fast=[(2, 2), (3, 4)])
)
def test_ranks_and_workers_read_disjoint_parts(world, ranks, workers):
    objects, expected = objects_of(world)
    list(IPFSIterableDataset(objects))  # used in the parent before the fork
    shares = shares_of(objects, ranks, workers)
    assert sorted(itertools.chain(*shares)) == sorted(expected)
    assert all(shares) or ranks * max(1, workers) > len(objects)


def test_members_are_divided_when_there_are_fewer_objects_than_workers(world):
    objects, expected = objects_of(world, "zip", "gz")
    shares = shares_of(objects, 3, 0)
    assert sorted(itertools.chain(*shares)) == sorted(expected)
    assert all(3 <= len(share) <= 5 for share in shares)
    by_object = shares_of(objects, 2, 0)
    assert sorted(by_object) == sorted([expected[:7], expected[7:]])


@pytest.mark.parametrize("world_size", [1, 8])
def test_resumes_at_every_sample(world, world_size):
    objects, _ = objects_of(world)
    options = {"seed": 5, "rank": 0, "world_size": world_size}
    whole = list(IPFSIterableDataset(objects, None, True, **options))
    following = None
    for count in range(len(whole) + 1):
        dataset = IPFSIterableDataset(objects, None, True, **options)
        iterator = iter(dataset)
        for _ in range(count):
            next(iterator)
        state = json.loads(json.dumps(dataset.state_dict()))
        iterator.close()
        assert len(json.dumps(state)) < 300
        other = IPFSIterableDataset(objects, None, True, **options)
        other.load_state_dict(state)
        assert other.state_dict() == state
        assert list(other) == whole[count:]
        following = list(other) if following is None else following
        assert other.epoch == (2 if count == 0 else 1)
    assert sorted(following) == sorted(whole) or world_size > 1


def test_workers_resume_with_states_of_their_own(world):
    objects, _ = objects_of(world)
    dataset = IPFSIterableDataset(objects)
    loader = DataLoader(Marked(dataset), batch_size=None, num_workers=2)
    samples = [(worker, tuple(sample), json.loads(state)) for worker, sample, state in loader]
    of_first = [(sample, state) for worker, sample, state in samples if worker == 0]
    dataset.load_state_dict(of_first[2][1])
    resumed = [tuple(sample) for worker, sample, _ in Only(dataset, 0).load() if worker == 0]
    assert resumed == [sample for sample, _ in of_first[3:]]
    with pytest.raises(StateError, match="worker 0 of 2"):
        list(dataset)


class Only(Marked):
    """Iterates in one worker of two."""

    def __init__(self, dataset, worker):
        super().__init__(dataset)
        self.worker = worker

    def load(self):
        return DataLoader(self, batch_size=None, num_workers=2)

    def __iter__(self):
        from streamloader.datasets.workers import get_dataloader_worker

        return super().__iter__() if get_dataloader_worker().number == self.worker else iter(())


@pytest.mark.parametrize("kind", [TYPE.ZIP, TYPE.TAR])
def test_resuming_leaves_out_the_contents_of_earlier_members(kind):
    files = {f"{number}.bin": bytes([number]) * 3_000_000 for number in range(8)}
    data = make_zip(files, 0) if kind is TYPE.ZIP else make_tar(files)
    dag = DagBuilder(chunk_size=250_000)
    entry = dag.file(data)
    with serve(dag) as gateway:
        dataset = IPFSIterableDataset(IPFSObject(f"{gateway.url}/ipfs/{entry.cid}", kind))
        iterator = iter(dataset)
        for _ in range(6):
            next(iterator)
        state = dataset.state_dict()
        iterator.close()
        gateway.sent.clear()
        other = IPFSIterableDataset(IPFSObject(f"{gateway.url}/ipfs/{entry.cid}", kind))
        other.load_state_dict(state)
        assert list(other) == list(files.items())[6:]
        # 24 of the 97 blocks have these members. Each header of a tar file takes one or two pieces of 4 blocks.
        assert len(set(gateway.sent)) < 90


def test_members_come_while_the_rest_still_arrives():
    """The gateway never sends the last block, and all members before it are there."""
    files = {f"{number}.bin": bytes([number]) * 400_000 for number in range(12)}
    dag = DagBuilder(chunk_size=250_000)
    for mode in ("w", "w:gz"):
        data = make_tar({name: bytes(value) for name, value in files.items()}, mode)
        entry = dag.file(data)
        victim = dag.leaves(entry)[-1]
        with serve(dag, "stall at the header", victim=victim) as gateway:
            dataset = IPFSIterableDataset(IPFSObject(f"{gateway.url}/ipfs/{entry.cid}", TYPE.TAR))
            iterator = iter(dataset)
            if mode == "w":
                assert [next(iterator) for _ in range(8)] == list(files.items())[:8]
            iterator.close()


@pytest.mark.parametrize(
    "value",
    [
        {"version": 2}, {"epoch": -1}, {"member": "1"}, {"object": True}, {"share": [0]}, {"share": None},
        {"skipped": [["a"]]}, {"objects": "0" * 32}, {"seed": 9}, {"shuffle": True}, {"member": 1 << 60},
    ],
)  # fmt: skip
def test_damaged_and_foreign_states_are_refused(world, value):
    objects, _ = objects_of(world, "zip")
    dataset = IPFSIterableDataset(objects)
    with pytest.raises(StateError):
        dataset.load_state_dict(dataset.state_dict() | value)
    for name in dataset.state_dict():
        with pytest.raises(StateError):
            dataset.load_state_dict({key: item for key, item in dataset.state_dict().items() if key != name})


def test_bad_samples_are_left_out_the_same_way_each_time():
    dag, cids = build(tar=make_tar(FILES), zip=make_zip(FILES, 0), cut=make_tar(FILES)[:2100])
    data = bytearray(make_zip(FILES, 0))
    start = data.index(FILES["b/f003.bin"])
    data[start] ^= 1  # the checksum of one member is wrong
    cids["bad"] = str(dag.file(bytes(data)).cid)
    folder = dag.tree({"metadata.txt": b"../x\na\nmissing\nb", "a": b"1", "b": b"2"})[""]
    kinds = {"cut": TYPE.TAR, "bad": TYPE.ZIP, "tar": TYPE.TAR}
    with serve(dag) as gateway:
        root = f"{gateway.url}/ipfs"
        objects = [IPFSObject(f"{root}/{cids[name]}", kind) for name, kind in kinds.items()]
        objects.insert(2, IPFSObject(f"{root}/{folder.cid}", TYPE.FOLDER))
        objects.insert(0, IPFSObject(f"{root}/{DagBuilder().file(b'nowhere').cid}", TYPE.PLAIN))
        make = lambda on_error: IPFSIterableDataset(objects, on_error=on_error, storage_options=NO_RETRY)  # noqa: E731
        dataset = make("skip")
        whole = list(dataset)
        good = [item for item in FILES.items() if item[0] != "b/f003.bin"]
        assert whole[-len(FILES) :] == list(FILES.items())
        assert [name for name, _ in whole[-len(FILES) - 2 : -len(FILES)]] == [
            f"{root}/{folder.cid}/a", f"{root}/{folder.cid}/b",
        ]  # fmt: skip
        assert whole[-len(FILES) - 2 - len(good) : -len(FILES) - 2] == good
        skipped = [(each.object, each.member) for each in dataset.skipped]
        assert skipped[0] == (objects[0].url, None)
        assert skipped[-3:] == [
            (objects[2].url, "b/f003.bin"), (objects[3].url, "../x"), (objects[3].url, f"{objects[3].url}/missing"),
        ]  # fmt: skip
        assert skipped[-4][0] == objects[1].url
        for count in range(len(whole) + 1):
            dataset = make("skip")
            for _ in itertools.islice(dataset, count):
                pass
            other = make("skip")
            other.load_state_dict(json.loads(json.dumps(dataset.state_dict())))
            assert list(other) == whole[count:]
            assert [(each.object, each.member) for each in other.skipped] == skipped
        with pytest.raises(NotFound) as caught:
            list(make("raise"))
        assert caught.value.details["object"] == objects[0].url
        dataset = IPFSIterableDataset(objects[2], storage_options=NO_RETRY)
        with pytest.raises(IntegrityError, match="checksum") as caught:
            list(dataset)
        assert (caught.value.details["member"], caught.value.offset) == ("b/f003.bin", start - 30 - len("b/f003.bin"))
        dataset_state = dataset.state_dict()
        assert dataset_state["member"] == 3  # a resume tries the member again
        with pytest.raises(CorruptContainer):
            list(IPFSIterableDataset(objects[1], storage_options=NO_RETRY))
    with pytest.raises(Unreachable):
        list(make("skip"))


def test_a_lying_gateway_never_reaches_the_loop():
    dag, cids = build(tar=make_tar(FILES))
    victim = dag.leaves(dag.file(make_tar(FILES)))[5]
    with serve(dag, "flipped byte", victim=victim) as gateway:
        each = IPFSObject(f"{gateway.url}/ipfs/{cids['tar']}", TYPE.TAR)
        dataset = IPFSIterableDataset(each, on_error="skip", storage_options=NO_RETRY)
        came = list(dataset)
        assert came == list(FILES.items())[: len(came)]
        assert len(came) < len(FILES)
        assert "bafkrei" in dataset.skipped[-1].error


def test_an_abandoned_iteration_ends_its_reads(world):
    objects, expected = objects_of(world)
    dataset = IPFSIterableDataset(objects)
    for _ in range(3):
        iterator = iter(dataset)
        assert next(iterator) == expected[0]
    del iterator
    gc.collect()
    assert list(dataset) == expected
    first, second = iter(dataset), iter(dataset)
    assert (next(first), next(second), next(first)) == (expected[0], expected[0], expected[1])
    assert dataset.state_dict()["member"] == 1  # that of the newer one


def test_a_real_node(jsipfs_node):
    added = jsipfs_node.add({"x.tar": make_tar(FILES), "y.zip": make_zip(MORE)})
    added["z"] = jsipfs_node.add_one(bytes(600_000))
    objects = [
        IPFSObject(f"ipfs://{added['x.tar']}", TYPE.TAR),
        IPFSObject(f"{jsipfs_node.gateway}/ipfs/{added['y.zip']}", TYPE.ZIP),
        IPFSObject(added["z"], TYPE.PLAIN_STREAM),
    ]
    dataset = IPFSIterableDataset(objects, f"/ip4/127.0.0.1/tcp/{jsipfs_node.rpc_port}", shuffle_urls=False)
    assert list(dataset) == [*FILES.items(), *MORE.items(), (added["z"], bytes(600_000))]


# --- reading ahead ---------------------------------------------------------------------------------------------------


def play(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60.0))


def test_a_budget_is_kept_and_the_first_ticket_always_fits():
    async def check():
        budget = ByteBudget(10)
        await budget.reserve(0, 50)  # the first one, whatever its size
        waiting = [asyncio.create_task(budget.reserve(ticket, size)) for ticket, size in ((2, 4), (1, 6), (3, 1))]
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        budget.release(0)
        await asyncio.gather(*waiting[:2])
        assert (budget.held, waiting[2].done()) == (10, False)
        waiting[2].cancel()
        budget.release(1)
        await budget.reserve(4, 6)
        assert budget.held == 10

    play(check())


@pytest.mark.parametrize(("max_bytes", "max_items"), [(0, 1), (0, 50), (25, 50), (1000, 3), (math.inf, 1000)])
def test_results_come_in_order_within_the_budget(max_bytes, max_items):
    running = set()
    peak = [0]

    async def items():
        for number in range(40):
            yield PendingRead(lambda reserve, number=number: read(number, reserve), is_sequential=number % 7 == 0)

    async def read(number, reserve):
        running.add(number)
        peak[0] = max(peak[0], len(running))
        for _ in range(number * 5 % 7):
            await asyncio.sleep(0)
        await reserve(10)
        for _ in range(number * 3 % 5):
            await asyncio.sleep(0)
        running.discard(number)
        return number

    async def check():
        prefetcher = OrderedPrefetcher(items(), max_bytes=max_bytes, max_items=max_items)
        came = []
        while page := await prefetcher.take():
            came += page
        await prefetcher.aclose()
        assert came == list(range(40))
        assert prefetcher.budget.peak <= max_bytes + 10  # the first one is granted in addition
        assert peak[0] <= max_items

    play(check())


def test_an_error_of_the_items_comes_after_what_was_read():
    async def items():
        async def read(_):
            return 1

        yield PendingRead(read)
        yield PendingRead(read)
        raise ZeroDivisionError

    async def check():
        prefetcher = OrderedPrefetcher(items(), max_bytes=10, max_items=10)
        came = []

        async def take_all():
            while page := await prefetcher.take():
                came.extend(page)

        with pytest.raises(ZeroDivisionError):
            await take_all()
        assert came == [1, 1]
        await prefetcher.aclose()

    play(check())
