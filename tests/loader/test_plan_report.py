"""The report of a plan equals what real loaders yield, for every switch, tail, rank and seed, and it reads nothing."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import re

import numpy as np
import pytest
from engine_data import Numbered
from made_clips import make_clip
from range_server import served

import streamloader as sl
from streamloader.archive.archive import Archive
from streamloader.loader.plan_report import LaneLoads, StreamLengths
from streamloader.streams.base import SourceSizes

SETTINGS = list(itertools.product(("pack", "align"), ("pad", "drop", "cycle")))  # switch and tail


def count_rank(dataset, batch_size, window, epoch, **arguments):
    """Iterate a real loader; return its number of batches, and its steps: delivered, padded, repeated."""
    with sl.MultiStreamer(dataset, batch_size, window, timeout=60.0, **arguments) as loader:
        loader.set_epoch(epoch)
        batches = [batch.numpy() for batch in loader]
        marks = [(batch["valid"].copy(), batch["repeat"].copy()) for batch in batches]
    valid = sum(int(valid.sum()) for valid, _ in marks)
    repeated = sum(int(repeat.sum()) for _, repeat in marks)
    return len(marks), valid - repeated, len(marks) * batch_size * window - valid, repeated


def check_case(lengths, batch_size, window, world_size, epoch, **arguments):
    dataset = Numbered(lengths)
    reports = {}
    for switch, tail in SETTINGS:
        options = arguments | {"switch": switch, "tail": tail, "world_size": world_size}
        with sl.MultiStreamer(dataset, batch_size, window, rank=0, **options) as loader:
            report = reports[switch, tail] = loader.plan_report(epoch)
            assert report.chosen.batches == len(loader)
        ranks = [count_rank(dataset, batch_size, window, epoch, rank=rank, **options) for rank in range(world_size)]
        chosen = report.chosen
        assert (chosen.switch, chosen.tail) == (switch, tail)
        assert {counts[0] for counts in ranks} == {chosen.batches}
        assert [counts[1:] for counts in ranks] == [(r.delivered, r.padded, r.repeated) for r in report.ranks]
        assert tuple(map(sum, zip(*(counts[1:] for counts in ranks), strict=True))) == (
            chosen.delivered, chosen.padded, chosen.repeated,
        )  # fmt: skip
        assert chosen.dropped == sum(lengths) - chosen.delivered
        cells = chosen.batches * batch_size * window * world_size
        assert chosen.padded_share == (chosen.padded / cells if cells else 0.0)
    for report in reports.values():  # each report has all combinations, and the same ones
        for planned in report.epochs:
            own = reports[planned.switch, planned.tail].chosen
            for name in ("batches", "delivered", "padded", "padded_share", "repeated", "dropped"):
                assert getattr(planned, name) == getattr(own, name)


def random_case(number):
    draw = random.Random(number)
    lengths = [draw.choice((0, 1, draw.randint(0, 9), draw.randint(0, 40))) for _ in range(draw.randint(0, 14))]
    check_case(
        lengths, draw.randint(1, 4), draw.randint(1, 7), draw.choice((1, 2, 3)), draw.randint(0, 3),
        seed=draw.randint(0, 99), shuffle=draw.random() < 0.8,
    )  # fmt: skip


@pytest.mark.parametrize("number", range(6))
def test_a_report_equals_what_loaders_yield(number):
    random_case(number)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(6))
def test_many_reports_equal_what_loaders_yield(block):
    for number in range(100 + 25 * block, 125 + 25 * block):
        random_case(number)


# --- bytes -----------------------------------------------------------------------------------------------------


class Sized(Numbered):
    """Streams of known and unknown sizes, in files and in stores. The size of stream s is a multiple of its length."""

    def __init__(self, lengths, sizes, *, by_step):
        super().__init__(lengths)
        self.sizes, self.by_step = sizes, by_step

    def source_sizes(self, streams):
        assert [info.length for info in streams] == self.lengths
        return SourceSizes(np.array(self.sizes), np.arange(len(self.sizes)) % 2 == 1, self.by_step)


def count_bytes(dataset, rank, arguments):
    """Return the bytes that a rank reads, local and remote, and how often it reads a source of unknown size."""
    sums = [0, 0, 0]
    with sl.MultiStreamer(dataset, rank=rank, timeout=60.0, **arguments) as loader:
        for batch in loader:
            arrays = batch.numpy()
            for stream, reset in zip(arrays["stream"].ravel(), arrays["reset"].ravel(), strict=True):
                size = dataset.sizes[stream]
                if stream >= 0 and size < 0:
                    sums[2] += int(reset)
                elif stream >= 0:
                    sums[stream % 2] += size // dataset.lengths[stream] if dataset.by_step else size * int(reset)
    return tuple(sums)


@pytest.mark.parametrize("by_step", [True, False])
@pytest.mark.parametrize(("switch", "tail"), SETTINGS)
def test_bytes_are_those_of_the_streams_that_are_read(switch, tail, by_step):
    draw = random.Random(5)
    lengths = [draw.randint(1, 30) for _ in range(9)]
    sizes = [-1 if number in (3, 4) else length * draw.randint(1, 1 << 20) for number, length in enumerate(lengths)]
    dataset = Sized(lengths, sizes, by_step=by_step)
    arguments = {"batch_size": 3, "window": 4, "switch": switch, "tail": tail, "seed": 2, "world_size": 2}
    with sl.MultiStreamer(dataset, rank=0, **arguments) as loader:
        report = loader.plan_report()
    ranks = [count_bytes(dataset, rank, arguments) for rank in range(2)]
    assert [(share.local_bytes, share.remote_bytes, share.unknown_sources) for share in report.ranks] == ranks
    totals = tuple(map(sum, zip(*ranks, strict=True)))
    assert (report.chosen.local_bytes, report.chosen.remote_bytes, report.chosen.unknown_sources) == totals


def test_empty_streams_are_read_once():
    cycle = report_of(Sized([8, 0], [10, 3], by_step=False), 3, 4, tail="cycle").chosen  # 8 | 0 | 8 again
    assert (cycle.batches, cycle.padded, cycle.local_bytes, cycle.remote_bytes) == (2, 0, 30, 3)
    for planned in report_of(Sized([0, 0], [10, 3], by_step=False), 3, 4).epochs:  # an empty epoch
        assert (planned.batches, planned.local_bytes, planned.remote_bytes) == (0, 0, 0)


def test_texts_are_read_step_by_step_from_files_and_servers(tmp_path):
    (tmp_path / "remote").mkdir()
    paths = [tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "remote" / "c.txt"]
    for path, size in zip(paths, (700, 50, 311), strict=True):
        path.write_bytes(b"x" * size)
    with served(tmp_path / "remote") as url:
        for addresses, expected in (
            ([str(paths[0]), f"{url}/c.txt", str(paths[1])], (750, 311)),
            ([f"{url}/c.txt"], (0, 311)),
            ([str(paths[1])], (50, 0)),
        ):
            with sl.MultiStreamer(sl.TextStreams(addresses), 1, 8) as loader:
                report = loader.plan_report()
            chosen = report.chosen
            assert (chosen.local_bytes, chosen.remote_bytes, chosen.unknown_sources) == (*expected, 0)
    cut = {e.tail: e.local_bytes for e in report_of(sl.TextStreams([str(path) for path in paths]), 2, 100).epochs[:3]}
    assert cut == {"pad": 1061, "drop": 600, "cycle": 1400}  # 700 | 311 + 50
    whole = report_of(sl.TextStreams(str(paths[0]), tokenizer=lambda text: [1] * 9), 1, 4)
    assert [planned.local_bytes for planned in whole.epochs] == [700, 700, 1400, 700, 700, 700]  # 12 of 9 tokens


def test_videos_and_archives_are_read_as_whole_files(tmp_path):
    (tmp_path / "remote").mkdir()
    local = make_clip(tmp_path / "a.mp4", frames=8)
    remote = make_clip(tmp_path / "remote" / "b.mp4", frames=5)
    with served(tmp_path / "remote") as url:
        streams = sl.VideoStreams([str(local), f"{url}/b.mp4"], max_frames=4)
        chosen = report_of(streams, 1, 2).chosen
        assert (chosen.local_bytes, chosen.remote_bytes) == (local.stat().st_size, remote.stat().st_size)
    with Archive.create(tmp_path / "archive") as archive:
        archive.add([str(local), str(remote)], jobs=0)
        chosen = report_of(sl.ArchiveStreams(archive), 1, 2).chosen
    chunks = sum(path.stat().st_size for path in (tmp_path / "archive" / "chunks").rglob("*.m*"))
    assert (chosen.local_bytes, chosen.remote_bytes, chosen.unknown_sources) == (chunks, 0, 0)


def test_texts_in_memory_take_no_bytes_of_files():
    report = report_of(sl.TextStreams.from_texts(["to be", "or not to be"]), 1, 4)
    assert (report.chosen.local_bytes, report.chosen.remote_bytes, report.chosen.unknown_sources) == (0, 0, 0)
    assert "nothing from files or stores" in str(report)


# --- the rest of the report ------------------------------------------------------------------------------------


def report_of(dataset, batch_size, window, **arguments):
    with sl.MultiStreamer(dataset, batch_size, window, **arguments) as loader:
        return loader.plan_report()


def test_lengths_and_loads():
    report = report_of(Numbered([3, 0, 11, 4, 4]), 2, 4, shuffle=False)
    assert report.streams == StreamLengths(
        count=5, unknown=0, steps=22, empty=1, short=2, shortest=0, median=4.0, longest=11, longest_key="s2"
    )
    assert report.loads == LaneLoads(lanes=2, lowest=11, median=11.0, mean=11.0, highest=11, imbalance=0.0)
    aligned = report_of(Numbered([3, 0, 11, 4, 4]), 2, 4, shuffle=False, switch="align")
    assert aligned.loads == LaneLoads(lanes=2, lowest=12, median=12.0, mean=12.0, highest=12, imbalance=0.0)


def test_loads_of_each_rank():
    report = report_of(Numbered([9, 5, 2]), 2, 1, shuffle=False, rank=1, world_size=2)
    assert [(share.rank, share.loads.lowest, share.loads.highest) for share in report.ranks] == [(0, 5, 9), (1, 0, 2)]
    assert [share.loads.imbalance for share in report.ranks] == [pytest.approx(2 / 7), 1.0]
    assert report.loads.imbalance == pytest.approx(9 / 4 - 1)


def test_the_ring_is_that_of_the_loader():
    dataset = sl.IterStreams([1], iter, fields={"a": sl.Field((8, 8, 3)), "b": sl.Field((), "float32")}, lengths=[5])
    for factor, slots in ((None, 8), (1, 3), (6, 9)):
        with sl.MultiStreamer(dataset, 512, 4, prefetch_factor=factor) as loader:
            ring, stats = loader.plan_report().ring, loader.stats()
        assert (ring.nbytes, ring.slots) == (stats.ring_bytes, stats.slots)
        assert ring.fields == {"a": 512 * 4 * 192, "b": 512 * 4 * 4}
        assert ring.slot_bytes == sum(ring.fields.values()) + ring.marks_bytes
        assert ring.slots == slots or factor is None
        assert ring.ahead == factor or factor is None


def test_a_report_opens_nothing_and_starts_nothing(tmp_path):
    path = make_clip(tmp_path / "a.mp4", frames=8)
    with sl.MultiStreamer(sl.VideoStreams(str(path)), 2, 4, num_workers=2) as loader:
        path.unlink()
        assert loader.plan_report().chosen.batches == 2
        assert loader._supervisor is None
        assert loader._ring is None
    assert loader.plan_report(epoch=3).epoch == 3  # a closed loader still has its plan
    with pytest.raises(sl.ConfigError, match="epoch"):
        loader.plan_report(epoch=-1)


def test_unknown_lengths_stay_unknown():
    dataset = sl.IterStreams(["a", "b", "c"], iter, fields=sl.Field(), lengths=[4, None, 9])
    report = report_of(dataset, 2, 4)
    assert report.streams == StreamLengths(
        count=3, unknown=1, steps=13, empty=0, short=0, shortest=4, median=6.5, longest=9, longest_key="c"
    )
    assert (report.loads, report.ranks) == (None, ())
    assert len(report.epochs) == 6
    for planned in report.epochs:
        counts = (planned.batches, planned.delivered, planned.padded, planned.repeated, planned.dropped)
        assert counts == (None,) * 5
        assert planned.unknown_sources == (3 if planned.tail == "pad" else None)
    assert "1 of 3 streams declare no length" in report.hints[0]
    assert "of which 1 declare no length" in str(report)
    nothing = report_of(sl.IterStreams(range(2), iter, fields=sl.Field()), 1, 4)
    assert (nothing.streams.unknown, nothing.streams.longest_key) == (2, None)
    assert json.loads(json.dumps(nothing.to_dict())) == nothing.to_dict()


def test_no_streams_at_all():
    report = report_of(Numbered([]), 2, 4)
    assert [planned.batches for planned in report.epochs] == [0] * 6
    assert report.hints == ()
    assert "0 with 0 steps" in str(report)


def test_a_report_is_plain_json():
    report = report_of(Numbered([3, 8]), 2, 4, rank=0, world_size=2)
    document = report.to_dict()
    assert json.loads(json.dumps(document)) == document
    assert set(document) == {field.name for field in dataclasses.fields(report)}
    assert document["epochs"][0]["batches"] == 2
    assert document["ranks"][1]["loads"]["lanes"] == 2


HINTS = {
    "align": ([1] * 40, 2, {"switch": "align"}, 'switch="align" pads 75.0%'),
    "more lanes than streams": ([9, 9], 4, {}, "4 lanes for 2 streams"),
    "more lanes than streams, drop": ([9, 9], 4, {"tail": "drop"}, "an epoch has no batch"),
    "one long stream": ([90, 5, 5, 5], 2, {}, "the stream s0 has 90 steps"),
    "one long stream, cycle": ([90, 5, 5, 5], 2, {"tail": "cycle"}, "repeat streams until it ends"),
    "uneven lanes": ([10, 10, 10, 10, 10], 2, {}, "the lanes end unevenly"),
}


@pytest.mark.parametrize("name", HINTS)
def test_hints(name):
    lengths, batch_size, arguments, words = HINTS[name]
    (hint,) = report_of(Numbered(lengths), batch_size, 4, **arguments).hints
    assert words in hint
    assert hint in str(report_of(Numbered(lengths), batch_size, 4, **arguments))


def test_no_hints_where_all_is_well():
    for switch, tail in SETTINGS:
        assert report_of(Numbered([40] * 40), 4, 4, switch=switch, tail=tail).hints == ()


def test_too_many_steps_to_count():
    dataset = sl.IterStreams(range(3), iter, fields=sl.Field(), lengths=[1 << 59] * 3)
    with sl.MultiStreamer(dataset, 3, 4) as loader, pytest.raises(sl.ConfigError, match="2\\^60"):
        loader.plan_report()
    dataset = sl.IterStreams(range(1), iter, fields=sl.Field(), lengths=[1 << 59])
    assert report_of(dataset, 64, 16).chosen.padded == 63 << 59  # more than 64 bits


def test_text_is_plain_and_names_are_made_printable():
    dataset = sl.IterStreams(["a\x1b[31m\u202eb", "c"], iter, fields=sl.Field((), "uint8"), lengths=[70, 5])
    text = str(report_of(dataset, 1, 4, rank=0, world_size=2))
    assert r"a\x1b[31m\u202eb" in text
    assert "\x1b" not in text
    assert all(line == line.rstrip() for line in text.splitlines())
    assert re.search(r"^\*  pack +pad +18 +69  47\.9% +0 +0 +\?$", text, re.MULTILINE)
    assert re.search(r"^ +pack +cycle +18 +0 +0\.0% +69 +0 +\?$", text, re.MULTILINE)
    assert re.search(r"^ +1 +\d+ +\d+ +0\.0% +\d+ +\d+ +0 +\?$", text, re.MULTILINE)
