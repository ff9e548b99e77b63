"""Files and folders at names that other users can plant or change."""

from __future__ import annotations

import grp
import os
import pwd
from types import SimpleNamespace

import pytest
from planted import KINDS, STRANGER_UID, as_user, give_away, needs_root, plant

from streamloader.common import guarded_files
from streamloader.common.guarded_files import GuardedFolder, UnsafePath, check_socket, lock_file, open_regular_file

pytestmark = pytest.mark.timeout(60)  # nothing here may wait


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "folder"
    path.mkdir(mode=0o700)
    return path


def opens(path, **options):
    with GuardedFolder(str(path), **options):
        return True


def read(folder, name="file"):
    with GuardedFolder(str(folder)) as opened, os.fdopen(opened.open_file(name), "rb") as file:
        return file.read()


def let_others_in(folder):
    for outer in (folder, *folder.parents):
        if not outer.stat().st_mode & 0o001:
            outer.chmod(outer.stat().st_mode & 0o7777 | 0o011)


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_new_folder_is_for_this_user_alone(tmp_path):
    umask = os.umask(0)
    try:
        assert opens(tmp_path / "more" / "new", create=True)
        with GuardedFolder(str(tmp_path / "more" / "new")) as outer, outer.open_folder("inner", create=True) as inner:
            os.close(inner.open_file("file", os.O_WRONLY | os.O_CREAT))
    finally:
        os.umask(umask)
    for name, mode in (("new", 0o700), ("new/inner", 0o700), ("new/inner/file", 0o600)):
        assert (tmp_path / "more" / name).stat().st_mode & 0o7777 == mode


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o500, 0o1777, 0o1775])
def test_folders_whose_contents_others_cannot_replace(folder, mode):
    folder.chmod(mode)
    assert opens(folder)


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757, 0o702, 0o730])
def test_a_folder_that_others_can_write_to_is_refused(folder, mode):
    if os.geteuid():
        pytest.skip("the group of another user may be a private one")
    folder.chmod(mode)
    for use in (opens, lambda path: opens(path, create=True), lambda path: opens(f"{path}/")):
        with pytest.raises(UnsafePath, match=rf"{mode:04o}.*other users.*folder of your own.*chmod go-w"):
            use(folder)


@needs_root
@pytest.mark.parametrize("mode", [0o700, 0o755, 0o1777])
def test_a_folder_of_another_user_is_refused(folder, mode):
    folder.chmod(mode)
    give_away(folder)
    with pytest.raises(UnsafePath, match=rf"folder belongs to another user \(uid {STRANGER_UID}\).*of your own"):
        opens(folder)


@needs_root
def test_a_user_who_is_not_root_trusts_root_and_nobody_else(tmp_path):
    let_others_in(tmp_path)
    for name, uid in (("mine", 1234), ("of_root", 0), ("of_another", STRANGER_UID)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"x")
        give_away(tmp_path / name, tmp_path / name / "file", uid=uid)
    with as_user(1234):
        assert read(tmp_path / "mine") == read(tmp_path / "of_root") == b"x"
        with pytest.raises(UnsafePath, match=f"uid {STRANGER_UID}"):
            read(tmp_path / "of_another")


def test_a_group_that_is_the_owner_alone_is_not_others(folder, monkeypatch):
    if os.geteuid():
        pytest.skip("the group is replaced for root's folder given to a user")
    members = []
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: SimpleNamespace(pw_name={1234: "ada", 0: "root"}[uid]))
    monkeypatch.setattr(
        grp, "getgrgid", lambda gid: SimpleNamespace(gr_name={1234: "ada", 0: "root"}[gid], gr_mem=members)
    )
    folder.chmod(0o775)
    give_away(folder, uid=1234)
    let_others_in(folder.parent)
    guarded_files._is_private_group.cache_clear()
    with as_user(1234):
        assert opens(folder)
    members.append("eve")
    guarded_files._is_private_group.cache_clear()
    with as_user(1234), pytest.raises(UnsafePath, match="0775"):
        opens(folder)
    guarded_files._is_private_group.cache_clear()


@pytest.mark.parametrize("create", [False, True])
def test_a_link_is_refused_and_links_before_it_are_followed(tmp_path, folder, create):
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (folder / "inner").mkdir()
    assert opens(tmp_path / "link" / "inner", create=create)
    for name in ("link", "link/", "dangling"):
        with pytest.raises(UnsafePath, match="is a symbolic link: give the path of the folder"):
            opens(f"{tmp_path}/{name}", create=create)
    with GuardedFolder(str(tmp_path)) as outer, pytest.raises(UnsafePath, match="is a symbolic link"):
        outer.open_folder("link", create=create)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "file"])
def test_something_else_in_the_place_of_a_folder(tmp_path, kind):
    if kind == "file":
        (tmp_path / "it").write_bytes(b"")
    else:
        plant(tmp_path / "it", kind)
    for create in (False, True):
        with pytest.raises(NotADirectoryError):
            opens(tmp_path / "it", create=create)


def test_a_folder_that_is_replaced_while_it_is_open_makes_no_difference(folder):
    (folder / "file").write_bytes(b"mine")
    with GuardedFolder(str(folder)) as opened:
        folder.rename(folder.with_name("moved"))
        folder.mkdir()
        (folder / "file").write_bytes(b"planted")
        with os.fdopen(opened.open_file("file"), "rb") as file:
            assert file.read() == b"mine"
        opened.unlink("file")
        assert (folder / "file").read_bytes() == b"planted"


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_CREAT])
@pytest.mark.parametrize("kind", KINDS)
def test_only_regular_files_are_opened_and_nothing_waits(folder, kind, flags):
    plant(folder / "file", kind)
    with GuardedFolder(str(folder)) as opened, pytest.raises(UnsafePath, match="file is not a regular file"):
        opened.open_file("file", flags)
    assert not (folder / "file.nowhere").exists()


def test_a_folder_in_the_place_of_a_file(folder):
    (folder / "file").mkdir()
    with pytest.raises(IsADirectoryError):
        read(folder)


@needs_root
def test_a_file_of_another_user_is_refused(folder):
    (folder / "file").write_bytes(b"x")
    give_away(folder / "file")
    with pytest.raises(UnsafePath, match=rf"belongs to another user \(uid {STRANGER_UID}\)"):
        read(folder)


@needs_root
@pytest.mark.parametrize("mode", [0o666, 0o664, 0o602])
def test_a_file_that_others_can_write_to_is_refused(folder, mode):
    (folder / "file").write_bytes(b"x")
    (folder / "file").chmod(mode)
    with pytest.raises(UnsafePath, match="other users can change it"):
        read(folder)


def test_a_second_name_of_a_file_is_refused_where_others_can_make_one(tmp_path, folder):
    (tmp_path / "of_the_victim").write_bytes(b"x")
    os.link(tmp_path / "of_the_victim", folder / "file")
    assert read(folder) == b"x"  # as in a backup that links what has not changed
    folder.chmod(0o1777)
    with pytest.raises(UnsafePath, match="second name"):
        read(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_the_user_names_are_regular_ones(folder, kind):
    plant(folder / "file", kind)
    if kind == "link":  # followed: the user chose it
        os.close(open_regular_file(str(folder / "file")))
        return
    with pytest.raises(FileNotFoundError if kind == "dangling link" else OSError):
        open_regular_file(str(folder / "file"))
    with pytest.raises(IsADirectoryError):
        open_regular_file(str(folder))


# --- locks and sockets ------------------------------------------------------------------------------------------------


def test_a_lock_is_held_once_and_waiting_for_it_has_a_deadline(folder):
    with GuardedFolder(str(folder)) as opened:
        with lock_file(opened, "lock", 60.0):
            with pytest.raises(TimeoutError, match="locked for 0 s"), lock_file(opened, "lock", 0.0):
                pass
            assert (folder / "lock").stat().st_mode & 0o777 == 0o600  # so nobody else can hold the lock
        with lock_file(opened, "lock", 0.0):
            pass


def test_a_lock_file_keeps_its_content(folder):
    (folder / "lock").write_bytes(b"kept")
    (folder / "lock").chmod(0o600)
    with GuardedFolder(str(folder)) as opened, lock_file(opened, "lock", 0.0):
        pass
    assert (folder / "lock").read_bytes() == b"kept"


@needs_root
def test_sockets_are_those_of_this_user_or_of_root(tmp_path):
    plant(tmp_path / "agent", "socket")
    check_socket(str(tmp_path / "agent"))
    give_away(tmp_path / "agent")
    with pytest.raises(UnsafePath, match="belongs to another user"):
        check_socket(str(tmp_path / "agent"))
    plant(tmp_path / "pipe", "pipe")
    with pytest.raises(UnsafePath, match="is not a socket"):
        check_socket(str(tmp_path / "pipe"))
