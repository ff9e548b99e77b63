"""``streamloader inspect`` of files and folders at any address."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from image_data import encode_animation, make_pixels, write_folder
from made_clips import make_clip, with_audio_only
from made_sounds import make_sound
from media_data import CLIPS

from streamloader.cli.main import main
from streamloader.datasets.shards.writer import ShardWriter
from streamloader.media.video.describe import describe_video
from streamloader.media.video.indexer import index_video
from streamloader.streams.make_index import index_videos
from streamloader.testing.faults.http import HttpFault, HttpServer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with files of all kinds, two of which cannot be read."""
    folder = tmp_path_factory.mktemp("mixed")
    make_clip(folder / "one.mp4", frames=23, gop=5)
    make_clip(folder / "two.mkv", "ffv1", frames=17, height=47)
    make_sound(folder / "tone.wav", "pcm_s16le")
    (folder / "cut.mp4").write_bytes((folder / "one.mp4").read_bytes()[:3000])
    (folder / "bad.mkv").write_bytes(b"\0garbage" * 300)
    (folder / "a.txt").write_text("hällo\n" * 10, encoding="utf-8")
    (folder / "noise").write_bytes(bytes(range(256)) * 20)
    write_folder(folder / "images", 3)
    with zipfile.ZipFile(folder / "set.zip", "w") as file:
        file.write(folder / "one.mp4", "videos/one.mp4")
        file.writestr("readme.txt", "x")
    return folder


def inspect(capsys, *arguments, status=0):
    assert main(["inspect", *map(str, arguments), "--json"]) == status
    out, err = capsys.readouterr()
    assert err == ""
    return json.loads(out)


def show(capsys, *arguments, status=0):
    assert main(["inspect", *map(str, arguments)]) == status
    return capsys.readouterr().out


# --- one file --------------------------------------------------------------------------------------------------------


def test_all_keys_of_a_video(folder, capsys):
    path = folder / "one.mp4"
    report = inspect(capsys, path)
    assert report.pop("version")
    assert report == {
        "address": str(path),
        "kind": "video",
        "size": path.stat().st_size,
        "modified": path.stat().st_mtime_ns / 1e9,
        "error": None,
        "details": {
            "stream": 0,
            "codec": "h264",
            "profile": "High",
            "frames": 23,
            "key_frames": 5,
            "longest_gap": 5,
            "seconds": 0.92,
            "start": 0.0,
            "fps": 25.0,
            "declared_fps": "25",
            "constant_rate": True,
            "stored_size": [48, 64],
            "frame_size": [48, 64],
            "pixel_aspect": "1:1",
            "cropping": [0, 0, 0, 0],
            "rotation": 0,
            "mirrored": False,
            "pixel_format": "yuv420p",
            "bits": 8,
            "color_range": None,
            "color_space": None,
            "color_primaries": None,
            "color_transfer": None,
            "interlaced": False,
            "video_stream": 0,
            "video_streams": 1,
            "clock_jumps": 0,
            "retimed": False,
            "seekable": True,
            "damaged": False,
            "note": "",
            "format": "mov,mp4,m4a,3gp,3g2,mj2",
            "format_name": "QuickTime / MOV",
            "videos": [{"index": 0, "codec": "h264", "size": [48, 64], "disposition": ["default"], "language": "und"}],
            "sounds": [],
            "others": {},
            "bits_per_second": path.stat().st_size * 8 / 0.92,
        },
    }
    text = show(capsys, path)
    assert re.search(r"^frames +23$", text, re.MULTILINE)
    assert re.search(r"^key frames +5, at most 5 frames apart$", text, re.MULTILINE)
    assert re.search(r"^rate +25 frames/s, constant \(25 declared\)$", text, re.MULTILINE)


@pytest.mark.parametrize("name", CLIPS)
def test_real_clips(clips, name, capsys):
    facts, details = CLIPS[name], inspect(capsys, clips[name])["details"]
    assert details["frames"] == facts.frames
    assert tuple(details["frame_size"]) == (facts.height, facts.width)
    assert details["seconds"] == pytest.approx(facts.frames / details["fps"])


def test_sound_streams_of_a_video(clips, capsys):
    (sound,) = inspect(capsys, clips["bigbuckbunny"])["details"]["sounds"]
    assert (sound["codec"], sound["rate"], sound["channels"], sound["layout"]) == ("aac", 48000, 6, "5.1")
    assert re.search(
        r"^1 +aac +48,000 Hz +6  5\.1 +5\.31 s +default$", show(capsys, clips["bigbuckbunny"]), re.MULTILINE
    )


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_rotation_turns_frames_upright(rotation, tmp_path, capsys):
    path = make_clip(tmp_path / "turned.mp4", frames=3, rotation=rotation)
    details = inspect(capsys, path)["details"]
    image = np.arange(48 * 64).reshape(48, 64)
    turned = np.rot90(image[:, ::-1] if details["mirrored"] else image, -details["rotation"] // 90)
    assert np.array_equal(turned, index_video(str(path)).orientation.apply_to_image(image))
    assert details["frame_size"] == list(turned.shape)
    assert details["stored_size"] == [48, 64]
    assert f"{details['rotation']} degrees clockwise" in show(capsys, path)


def test_colours_and_rate(tmp_path, capsys):
    def set_colours(stream):
        stream.codec_context.color_range, stream.codec_context.colorspace = 2, 1
        stream.codec_context.color_primaries, stream.codec_context.color_trc = 9, 16

    path = make_clip(
        tmp_path / "a.mkv", frames=6, pix_fmt="yuv444p", prepare=set_colours, ticks=lambda number: number + (number > 2)
    )
    details = inspect(capsys, path)["details"]
    assert details["pixel_format"] in ("yuv444p", "yuvj444p")
    assert [details[f"color_{name}"] for name in ("range", "space", "primaries", "transfer")] == [
        "pc", "bt709", "bt2020", "smpte2084",
    ]  # fmt: skip
    assert details["constant_rate"] is False
    assert "variable" in show(capsys, path)


def test_a_sound(folder, tmp_path, capsys):
    report = inspect(capsys, folder / "tone.wav")
    details = report["details"]
    assert (report["kind"], details["codec"], details["rate"], details["channels"]) == ("sound", "pcm_s16le", 44_100, 2)
    assert details["seconds"] == details["samples"] / 44_100
    assert details["bits_per_second"] == pytest.approx(44_100 * 2 * 16, rel=0.01)
    assert inspect(capsys, with_audio_only(tmp_path / "only.mp4"))["kind"] == "sound"


def test_images_and_texts(folder, tmp_path, capsys):
    image = inspect(capsys, folder / "images" / "00001.png")
    assert (image["kind"], image["details"]) == (
        "image", {"format": "png", "stored_size": [24, 32], "frame_size": [24, 32], "frames": 1, "seconds": None},
    )  # fmt: skip
    animation = tmp_path / "a.gif"
    animation.write_bytes(encode_animation([make_pixels(seed) for seed in range(3)], "GIF", [40, 40, 120]))
    assert inspect(capsys, animation)["details"] == {
        "format": "gif", "stored_size": [24, 32], "frame_size": [24, 32], "frames": 3, "seconds": 0.2,
    }  # fmt: skip
    text = inspect(capsys, folder / "a.txt")
    assert (text["kind"], text["details"]) == (
        "text", {"encoding": "utf-8", "lines": 10, "characters": 60, "bytes_read": 70, "complete": True},
    )  # fmt: skip
    long = tmp_path / "long"
    long.write_text("é\n" * 600_000, encoding="utf-8")
    text = inspect(capsys, long)
    assert (text["kind"], text["details"]["complete"], text["details"]["bytes_read"]) == ("text", False, 1 << 20)
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\0\0")
    assert inspect(capsys, tmp_path / "b.txt")["details"]["encoding"] is None


def test_containers_and_shards(folder, tmp_path, capsys):
    report = inspect(capsys, folder / "set.zip", "--limit", "1")
    assert (report["kind"], report["size"]) == ("container", (folder / "set.zip").stat().st_size)
    details = report["details"]
    assert [member["name"] for member in details.pop("listed")] == ["readme.txt"]
    assert details == {
        "members": 2,
        "member_bytes": (folder / "one.mp4").stat().st_size + 1,
        "kinds": {"text": 1, "video": 1},
        "samples": None,
        "fields": None,
    }
    assert "and 1 more: raise --limit" in show(capsys, folder / "set.zip", "--limit", "1")
    member = inspect(capsys, f"{folder}/set.zip!/videos/one.mp4")
    assert member["details"] == inspect(capsys, folder / "one.mp4")["details"]
    shard = tmp_path / "a.tar"
    with tarfile.open(shard, "w") as file:
        for name in ("0.cls", "0.txt", "1.cls", "1.txt", "2.cls"):
            info = tarfile.TarInfo(name)
            info.size = 1
            file.addfile(info, io.BytesIO(b"1"))
    report = inspect(capsys, shard)
    assert (report["kind"], report["details"]["samples"]) == ("shard", 3)
    assert report["details"]["fields"] == {"cls": 3, "txt": 2}
    shard.write_bytes(shard.read_bytes()[:1100])
    report = inspect(capsys, shard, status=1)
    assert report["error"]["type"] == "CorruptContainer"


def test_an_index_file(folder, tmp_path, capsys):
    file = tmp_path / "index.sqlite"
    index_videos([str(folder / "one.mp4"), str(folder / "cut.mp4")], str(file), unreadable="skip", progress=False)
    report = inspect(capsys, file)
    assert (report["kind"], report["details"]) == (
        "index", {"videos": 1, "frames": 23, "seconds": pytest.approx(0.92), "left_out": 1, "verify": "tables"},
    )  # fmt: skip
    assert re.search(r"^left out +1$", show(capsys, file), re.MULTILINE)
    assert [each["kind"] for each in inspect(capsys, tmp_path)["listed"]] == ["index"]


def test_a_file_that_cannot_be_read(folder, tmp_path, capsys):
    report = inspect(capsys, folder / "cut.mp4", status=1)
    assert (report["kind"], report["details"], report["size"]) == ("video", None, 3000)
    assert report["error"]["type"] == "UnreadableStream"
    assert "truncated" in report["error"]["message"]
    assert "truncated" in show(capsys, folder / "cut.mp4", status=1)
    (tmp_path / "empty.mp4").touch()
    assert "empty" in inspect(capsys, tmp_path / "empty.mp4", status=1)["error"]["message"]
    noise = inspect(capsys, folder / "noise", status=1)
    assert (noise["kind"], noise["error"]["type"]) == ("other", "UnreadableStream")
    assert "is no video, sound, image or text" in noise["error"]["message"]


# --- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_shows_what_can_be_read_and_why_the_rest_cannot(folder, capsys):
    report = inspect(capsys, folder, status=1)
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    assert (report["kind"], report["files"], report["bytes"], report["examined"]) == (
        "directory", len(sizes), sum(sizes.values()), len(sizes),
    )  # fmt: skip
    assert [os.path.relpath(each["address"], folder) for each in report["listed"]] == [
        "a.txt", "images/00000.png", "images/00001.png", "images/00002.png", "noise", "one.mp4", "set.zip", "tone.wav",
        "two.mkv",
    ]  # fmt: skip
    assert report["kinds"]["other"] == {
        "files": 1, "bytes": 5120, "frames": 0, "seconds": 0.0, "unreadable": 0, "frame_sizes": {},
    }  # fmt: skip
    assert [os.path.relpath(each["address"], folder) for each in report["unreadable"]] == ["bad.mkv", "cut.mp4"]
    assert report["unreadable_files"] == 2
    assert report["kinds"]["video"] == {
        "files": 4,
        "bytes": sum(sizes[folder / name] for name in ("one.mp4", "two.mkv", "cut.mp4", "bad.mkv")),
        "frames": 40,
        "seconds": pytest.approx(1.6),
        "unreadable": 2,
        "frame_sizes": {"48x64": 1, "47x64": 1},
    }
    assert (report["kinds"]["image"]["files"], report["kinds"]["image"]["frame_sizes"]) == (3, {"24x32": 3})
    text = show(capsys, folder, status=1)
    assert re.search(r"^one\.mp4 +video +\S+ kB +23 +5  48x64 +25/s +0\.92 s  h264$", text, re.MULTILINE)
    assert re.search(r"^cut\.mp4 +.*truncated", text, re.MULTILINE)


def test_limits_of_a_folder(folder, capsys):
    report = inspect(capsys, folder, "--limit", "2", "--max-files", "5", status=1)
    assert (report["files"], report["examined"], len(report["listed"])) == (11, 5, 2)
    text = show(capsys, f"{folder}/*.m*", "--limit", "1", status=1)
    assert "and 1 more: raise --limit" in text
    assert "one.mp4" in text
    assert "two.mkv" not in text
    assert "raise --max-files" in show(capsys, folder, "--max-files", "1")


def test_a_data_set_of_shards(tmp_path, capsys):
    with ShardWriter(str(tmp_path / "shards"), maxcount=2) as writer:
        for number in range(5):
            writer.write({"__key__": f"{number:03}", "cls": b"1"})
    report = inspect(capsys, tmp_path / "shards")
    assert report["dataset"] == {"samples": 5, "shards": 3}
    assert "5 samples in 3 shards" in show(capsys, tmp_path / "shards")


# --- files that end FFmpeg -------------------------------------------------------------------------------------------


def test_a_file_that_ends_its_parser_is_a_finding(folder, tmp_path, monkeypatch, capsys):
    from cli import crashing_parser

    from streamloader.cli import media_parser

    monkeypatch.setattr(media_parser, "describe_media", crashing_parser.describe_or_crash)
    names = ("a.mp4", "crash.mp4", "leave.mp4", "lie.mp4", "z.mp4")
    for name in names:
        shutil.copy(folder / "one.mp4", tmp_path / name)
    report = inspect(capsys, tmp_path, status=1)
    assert [Path(each["address"]).name for each in report["listed"]] == ["a.mp4", "z.mp4"]
    problems = {Path(each["address"]).name: each["error"] for each in report["unreadable"]}
    assert {each["type"] for each in problems.values()} == {"CorruptStream"}
    for name, words in {
        "crash.mp4": "signal SIGSEGV", "leave.mp4": "exit status 0", "lie.mp4": "malformed report",
    }.items():  # fmt: skip
        assert words in problems[name]["message"], name
        assert str(tmp_path / name) in problems[name]["message"]
    single = inspect(capsys, tmp_path / "crash.mp4", status=1)
    assert (single["details"], single["error"]["type"]) == (None, "CorruptStream")


def test_a_file_at_which_its_parser_hangs_is_a_finding(folder, tmp_path, monkeypatch, capsys):
    from cli import crashing_parser

    from streamloader.cli import media_parser, media_reports

    monkeypatch.setattr(media_parser, "describe_media", crashing_parser.describe_or_crash)
    monkeypatch.setattr(media_reports, "_STALL_TIMEOUT_S", 1.0)
    shutil.copy(folder / "one.mp4", tmp_path / "hang.mp4")
    shutil.copy(folder / "a.txt", tmp_path)
    report = inspect(capsys, tmp_path, status=1)
    assert [Path(each["address"]).name for each in report["listed"]] == ["a.txt"]
    assert "made no progress for 1 seconds" in report["unreadable"][0]["error"]["message"]


def test_names_are_escaped_where_output_is_no_terminal(folder, tmp_path, capsys):
    """Also in tables whose empty columns are left out."""
    for number, name in enumerate((b"esc\x1b[31m", b"caf\xe9", b"line\nbreak", b"c1\xc2\x9b31m", b"\xe2\x80\xaertl")):
        source = folder / ("one.mp4" if number % 2 else "bad.mkv")
        shutil.copy(source, os.path.join(os.fsencode(tmp_path), name + os.fsencode(source.suffix)))
    for arguments in ([tmp_path], [tmp_path, "--json"], [tmp_path / "esc\x1b[31m.mkv"]):
        assert main(["inspect", *map(str, arguments)]) == 1
        out = capsys.readouterr().out
        assert all(line.isprintable() for line in out.split("\n"))
        out.encode()


def test_what_may_not_be_read_is_listed_with_the_rest(folder, tmp_path, capsys):
    shutil.copy(folder / "one.mp4", tmp_path / "one.mp4")
    os.mkfifo(tmp_path / "pipe\x1b[1m.mp4")
    (tmp_path / "link.mp4").symlink_to("nothing\n")
    report = inspect(capsys, tmp_path, status=1)
    assert (report["files"], report["unreadable_files"], len(report["listed"])) == (3, 2, 1)
    shown = show(capsys, tmp_path, status=1)
    assert "not a regular file" in shown
    assert "does not exist" in shown
    assert r"pipe\x1b[1m.mp4" in shown


# --- stores ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def details(folder):
    """What has to be found of one.mp4 at any address."""
    path = folder / "one.mp4"
    found = json.loads(json.dumps(describe_video(str(path), index_video(str(path)))))
    return {**found, "bits_per_second": path.stat().st_size * 8 / 0.92}


def inspect_with_options(capsys, tmp_path, address, options, status=0):
    file = tmp_path / "options.json"
    file.write_text(json.dumps(options))
    return inspect(capsys, address, "--storage-options", file, status=status)


def test_ssh(folder, details, ssh_server, tmp_path, capsys):
    shutil.copytree(folder, ssh_server.data / "inspected")
    options = ssh_server.options()
    assert (
        inspect_with_options(capsys, tmp_path, ssh_server.address("inspected/one.mp4"), options)["details"] == details
    )
    address = ssh_server.address("inspected")
    report = inspect_with_options(capsys, tmp_path, address, options, status=1)
    local = inspect(capsys, folder, status=1)
    assert report["kinds"] == local["kinds"]
    assert [each["details"] for each in report["listed"]] == [each["details"] for each in local["listed"]]
    assert [each["error"]["type"] for each in report["unreadable"]] == ["UnreadableStream"] * 2


def test_http_and_a_member_of_a_zip(folder, details, nginx_server, capsys):
    nginx_server.put({f"inspected/{name}": (folder / name).read_bytes() for name in ("one.mp4", "set.zip", "a.txt")})
    root = f"{nginx_server.url}/inspected"
    assert inspect(capsys, f"{root}/one.mp4")["details"] == details
    assert inspect(capsys, f"{root}/set.zip!/videos/one.mp4")["details"] == details
    assert inspect(capsys, f"{root}/set.zip")["details"]["members"] == 2
    assert inspect(capsys, f"{root}/a.txt")["details"]["lines"] == 10
    for address, words in ((f"{root}/none.mp4", "none.mp4"), (f"{root}/", "no listings")):
        assert main(["inspect", address]) == 2
        assert words in capsys.readouterr().err


def test_s3_and_ipfs(folder, details, seaweed_server, jsipfs_node, tmp_path, capsys):
    bucket = seaweed_server.bucket()
    data = (folder / "one.mp4").read_bytes()
    seaweed_server.make_objects(bucket, ["v/one.mp4"], data)
    options = seaweed_server.options()
    assert inspect_with_options(capsys, tmp_path, f"s3://{bucket}/v/one.mp4", options)["details"] == details
    cid = jsipfs_node.add({"d/one.mp4": data})["d"]
    options = {"rpc": jsipfs_node.rpc}
    assert inspect_with_options(capsys, tmp_path, f"ipfs://{cid}/one.mp4", options)["details"] == details
    assert inspect_with_options(capsys, tmp_path, f"ipfs://{cid}", options)["kinds"]["video"]["frames"] == 23


def test_a_video_is_not_read_whole(folder, details, capsys):
    padding = (32 << 20).to_bytes(4, "big") + b"free" + bytes((32 << 20) - 8)
    data = (folder / "one.mp4").read_bytes() + padding

    async def run():
        async with HttpServer({"one.mp4": data}) as server:
            server.fault = HttpFault("truncated", at=16 << 20)  # only of requests for this byte
            report = await asyncio.to_thread(inspect, capsys, f"{server.url}/one.mp4")
            assert server.fault_count == 0
            return report

    found = asyncio.run(run())["details"]
    assert {**found, "bits_per_second": 0} == {**details, "bits_per_second": 0}


# --- terminals -------------------------------------------------------------------------------------------------------


def test_names_are_escaped_in_a_terminal_of_100_columns(folder, tmp_path):
    (tmp_path / "a\x1b[31mb\nc.txt").write_text("x\n")
    shutil.copy(folder / "one.mp4", tmp_path / "one.mp4")
    parent_end, child_end = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "NO_COLOR": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "streamloader", "inspect", str(tmp_path)],
        stdin=subprocess.DEVNULL, stdout=child_end, stderr=subprocess.PIPE, env=environment,
    ) as process:  # fmt: skip
        os.close(child_end)
        shown = b""
        while True:
            try:
                part = os.read(parent_end, 1 << 16)
            except OSError:  # the other end was closed: Linux says it so
                break
            if not part:
                break
            shown += part
        os.close(parent_end)
        assert process.wait(60) == 0, process.stderr.read()
    text = shown.decode()
    assert "[31mb\nc" not in text
    assert "\x1b[31m" not in text
    assert r"a\x1b[31mb\nc.txt" in text
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in text.splitlines()]
    assert max(map(len, lines)) <= 100
