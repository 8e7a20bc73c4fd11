"""A fingerprint changes with the contents and names of files, and with nothing else."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ltpipe.plan import fingerprints
from ltpipe.plan.fingerprints import (
    files_below,
    fingerprint,
    printable,
    record,
    recorded,
    recorded_files,
)
from ltpipe.utils.errors import DiskError, InputError
from ltpipe.utils.outside import read_bytes

LONG_AGO = 1_500_000_000 * 10**9


def age(path, ns=LONG_AGO):
    os.utime(path, ns=(ns, ns))


@pytest.fixture
def photos(tmp_path):
    """A folder of four photos in two classes."""
    root = tmp_path / "photos"
    for label, names in {"cat": "ab", "dog": "cd"}.items():
        (root / label).mkdir(parents=True)
        for name in names:
            path = root / label / f"{name}.png"
            path.write_bytes(f"photo {name}".encode())
            age(path)
    return root


@pytest.fixture
def settled(monkeypatch):
    """Files that were just written are trusted, as if they had lain there for a while."""
    monkeypatch.setattr(fingerprints, "_RACY_NS", -(10**18))


@pytest.fixture
def reads(monkeypatch):
    """The files that are read, not only looked at."""
    found = []
    original = fingerprints._hash_one

    def spy(path):
        found.append(path.rpartition("/")[2])
        return original(path)

    monkeypatch.setattr(fingerprints, "_hash_one", spy)
    return found


def identify(root):
    return fingerprint(files_below(root), root.parent / "results/cache", "photos")


def add(root):
    (root / "cat/new.png").write_bytes(b"new")


def remove(root):
    (root / "cat/a.png").unlink()


def relabel(root):
    (root / "cat/a.png").rename(root / "dog/a.png")


def replace_by_equal_size(root):
    (root / "cat/a.png").write_bytes(b"photo z")


def replace_with_an_older_time(root):
    path = root / "cat/a.png"
    path.unlink()
    path.write_bytes(b"photo z")
    age(path, LONG_AGO - 10**12)


def edit_in_place_and_set_the_time_back(root):
    with open(root / "cat/a.png", "r+b") as handle:
        handle.write(b"PHOTO")
    age(root / "cat/a.png")


def swap_two(root):
    (root / "cat/a.png").rename(root / "x")
    (root / "dog/c.png").rename(root / "cat/a.png")
    (root / "x").rename(root / "dog/c.png")


CHANGES = [
    add,
    remove,
    relabel,
    replace_by_equal_size,
    replace_with_an_older_time,
    edit_in_place_and_set_the_time_back,
    swap_two,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changes_of_the_data_change_it_and_back_again(photos, settled, change):
    shutil.copytree(photos, photos.parent / "kept")
    before = identify(photos)
    assert identify(photos) == before
    change(photos)
    assert identify(photos).digest != before.digest
    shutil.rmtree(photos)
    (photos.parent / "kept").rename(photos)
    assert identify(photos) == before


def test_moving_and_copying_without_times_change_nothing(photos, settled):
    before = identify(photos)
    moved = photos.rename(photos.parent / "moved")
    assert identify(moved) == before
    copied = photos.parent / "copied"
    shutil.copytree(moved, copied, copy_function=shutil.copyfile)
    assert identify(copied) == before
    for path in copied.rglob("*.png"):
        age(path, 4_000_000_000 * 10**9)
    assert identify(copied) == before


def test_a_link_counts_by_what_it_leads_to(photos, settled):
    before = identify(photos)
    target = photos.parent / "elsewhere.png"
    (photos / "cat/a.png").rename(target)
    (photos / "cat/a.png").symlink_to(target)
    assert identify(photos) == before
    target.write_bytes(b"photo z")
    assert identify(photos) != before
    (photos / "cat/a.png").unlink()
    target.write_bytes(b"photo a")
    shutil.move(photos / "cat", photos.parent / "cats")
    (photos / "cat").symlink_to(photos.parent / "cats")
    (photos / "cat/a.png").symlink_to(target)
    assert identify(photos) == before


def test_names_and_contents_do_not_run_into_each_other(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    one, two = tmp_path / "a", tmp_path / "b"
    cache = tmp_path / "cache"
    digests = {
        fingerprint(files, cache, "x").digest
        for files in ({"a": one, "b": two}, {"a": two, "b": one}, {"a": one}, {"b": one}, {})
    }
    assert len(digests) == 5
    ordered = fingerprint([("b", two), ("a", one)], cache, "x")
    assert ordered == fingerprint({"a": one, "b": two}, cache, "x")


# ---- the cache -------------------------------------------------------------------------------


def test_only_new_and_changed_files_are_read(photos, settled, reads):
    identify(photos)
    assert sorted(reads) == ["a.png", "b.png", "c.png", "d.png"]
    reads.clear()
    identify(photos)
    assert reads == []
    (photos / "cat/a.png").write_bytes(b"photo A")
    (photos / "cat/new.png").write_bytes(b"new")
    identify(photos)
    assert sorted(reads) == ["a.png", "new.png"]


def test_a_file_that_was_just_written_is_read_again(photos, reads):
    """It could change once more within the resolution of its times."""
    identify(photos)
    reads.clear()
    identify(photos)
    assert sorted(reads) == ["a.png", "b.png", "c.png", "d.png"]


def test_a_change_that_keeps_all_times_is_seen_while_the_file_is_fresh(photos, monkeypatch):
    """As on a file system with coarse times: two writes within one tick look alike."""
    state = fingerprints._state
    monkeypatch.setattr(
        fingerprints, "_state", lambda path, status: state(path, status).split(" ")[0]
    )
    before = identify(photos)
    (photos / "cat/a.png").write_bytes(b"photo z")
    assert identify(photos) != before


def test_times_in_the_future_do_not_keep_a_file_fresh(photos, reads, monkeypatch):
    for path in photos.rglob("*.png"):
        age(path, 4_000_000_000 * 10**9)
    now = time.time_ns()
    monkeypatch.setattr(fingerprints.time, "time_ns", lambda: now + 10**10)
    identify(photos)
    reads.clear()
    identify(photos)
    assert reads == []


@pytest.mark.parametrize("damage", [b"", b"\0\xff", b"ltpipe-hashes/1 00\na\0b", "flip", "cut"])
def test_a_damaged_cache_is_made_again(photos, settled, reads, capsys, damage):
    before = identify(photos)
    cache = photos.parent / "results/cache"
    data = bytearray(cache.read_bytes())
    if damage == "flip":
        data[-3] ^= 1
    cache.write_bytes(data[:-5] if damage == "cut" else data if damage == "flip" else damage)
    reads.clear()
    assert identify(photos) == before
    assert len(reads) == 4
    said = capsys.readouterr().err
    assert said.count("\n") == 2 and "damaged" in said
    reads.clear()
    assert identify(photos) == before
    assert reads == [] and capsys.readouterr().err == ""


def test_files_that_are_gone_are_forgotten_and_others_kept(photos, settled, reads):
    other = photos.parent / "other"
    other.mkdir()
    (other / "x.png").write_bytes(b"x")
    cache = photos.parent / "results/cache"
    identify(photos)
    fingerprint(files_below(other), cache, "other")
    remove(photos)
    add(photos)
    reads.clear()
    identify(photos)
    fingerprint(files_below(other), cache, "other")
    assert reads == ["new.png"]
    text = cache.read_bytes()
    assert b"cat/a.png" not in text and b"cat/b.png" in text and b"other/x.png" in text


def test_what_was_read_before_an_interruption_is_kept(photos, settled, reads, monkeypatch):
    monkeypatch.setattr(fingerprints, "_CHUNK", 1)
    with monkeypatch.context() as patched:
        read = fingerprints._hash_one

        def interrupted(path):
            if path.endswith("c.png"):
                raise KeyboardInterrupt
            return read(path)

        patched.setattr(fingerprints, "_hash_one", interrupted)
        with pytest.raises(KeyboardInterrupt):
            identify(photos)
    reads.clear()
    identify(photos)
    assert sorted(reads) == ["c.png", "d.png"]


def _identify_often(root, start):
    start.wait()
    for _ in range(5):
        fingerprints._RACY_NS = -(10**18)
        identify(root)


def test_two_processes_may_write_at_once(photos, settled):
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(2)
    other = photos.parent / "other"
    shutil.copytree(photos, other)
    processes = [context.Process(target=_identify_often, args=(r, start)) for r in (photos, other)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert identify(photos) == identify(other)


# ---- what is refused -------------------------------------------------------------------------


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def test_files_that_are_none_are_refused(photos):
    os.mkfifo(photos / "cat/pipe.png")
    with pytest.raises(InputError, match=r"pipe\.png: not a regular file") as caught:
        identify(photos)
    one_line(caught)
    with pytest.raises(InputError, match="not a regular file"):
        fingerprint({"null": "/dev/null"}, photos.parent / "cache", "x")


def test_a_file_that_becomes_a_pipe_does_not_hang(photos, monkeypatch):
    path = photos / "cat/a.png"
    seen = path.stat()
    path.unlink()
    os.mkfifo(path)
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(InputError, match="not a regular file"):
            pool.submit(read_bytes, path).result(30)
        # Between looking at it and opening it.
        monkeypatch.setattr(fingerprints, "_status", lambda _: seen)
        with pytest.raises(InputError, match="not a regular file"):
            pool.submit(fingerprint, {"a": path}, photos.parent / "cache", "x").result(30)


def test_a_cache_that_cannot_be_written_is_said_and_no_more(photos, monkeypatch, capsys):
    def full(*_):
        raise DiskError("results/cache: can't be written: no space left")

    before = identify(photos)
    monkeypatch.setattr(fingerprints, "_write_cache", full)
    capsys.readouterr()
    assert identify(photos) == before
    assert capsys.readouterr().err.count("\n") == 1


def test_a_file_that_changes_while_it_is_read_is_refused(photos, monkeypatch):
    digest = fingerprints.hashlib.file_digest

    def slow(handle, kind):
        with open(photos / "cat/a.png", "ab") as other:
            other.write(b"more")
        return digest(handle, kind)

    monkeypatch.setattr(fingerprints.hashlib, "file_digest", slow)
    with pytest.raises(InputError, match="changed while it was read"):
        fingerprint({"a": photos / "cat/a.png"}, photos.parent / "cache", "x")


def test_missing_and_unreadable_files_are_one_line(photos, monkeypatch):
    cache = photos.parent / "cache"
    with pytest.raises(InputError, match=r"gone\.png: can't be read") as caught:
        fingerprint({"a": photos / "gone.png"}, cache, "x")
    one_line(caught)
    with pytest.raises(InputError, match="nowhere: can't be read"):
        list(files_below(photos / "nowhere"))
    (photos / "cat/broken.png").symlink_to("nothing")
    with pytest.raises(InputError, match=r"broken\.png"):
        identify(photos)
    with pytest.raises(InputError, match="a is named twice"):
        fingerprint([("a", photos / "cat/a.png")] * 2, cache, "x")


# ---- listing ---------------------------------------------------------------------------------


def test_listing_is_stable_and_filters_by_ending(photos):
    (photos / "cat/notes.txt").write_text("x")
    (photos / "dog/UPPER.PNG").write_text("x")
    (photos / "top.png").write_text("x")
    names = [name for name, _ in files_below(photos, {".png"})]
    assert names == ["top.png", "cat/a.png", "cat/b.png"] + [
        f"dog/{name}" for name in ("UPPER.PNG", "c.png", "d.png")
    ]
    assert "cat/notes.txt" in dict(files_below(photos))
    assert all((photos / name).samefile(path) for name, path in files_below(photos))


def test_links_to_folders_are_followed_and_circles_refused(photos):
    (photos / "dog/inner").symlink_to(photos / "cat")
    assert "dog/inner/a.png" in dict(files_below(photos))
    (photos / "cat/up").symlink_to(photos)
    with pytest.raises(InputError, match="remove the link"):
        list(files_below(photos))


def test_names_in_any_encoding(tmp_path, settled):
    root = tmp_path / "photos"
    root.mkdir()
    odd = [b"\xff\xfe.png", "ü\u0308.png".encode(), b"new\nline.png", b"tab\t.png", b" .png"]
    for name in odd:
        with open(os.fsencode(root) + b"/" + name, "wb") as handle:
            handle.write(name)
    before = identify(root)
    assert len(before.files) == len(odd)
    assert identify(root) == before
    record(tmp_path / "r", "odd", before)
    assert recorded(tmp_path / "r", "odd") == before
    for name in before.files:
        assert printable(name).isprintable()
        printable(name).encode()


# ---- records and jobs ------------------------------------------------------------------------


def test_a_recorded_fingerprint_stands_in(photos):
    folder = photos.parent / "results/fingerprints"
    assert recorded(folder, "photos") is None
    before = identify(photos)
    record(folder, "photos", before)
    record(folder, "photos", before)
    shutil.rmtree(photos / "dog")
    after = identify(photos)
    assert recorded(folder, "photos") == before
    record(folder, "photos", after)
    record(folder, "../photos", before)
    assert recorded(folder, "photos") == after
    assert recorded(folder, "../photos") == before
    # A job that was planned before the change still finds what it was planned with.
    assert recorded_files(folder, before.digest) == before
    assert {path.parent for path in photos.parent.rglob("*.digest")} == {folder}


def test_the_fingerprint_of_no_files_is_kept_too(tmp_path):
    nothing = fingerprint({}, tmp_path / "cache", "x")
    record(tmp_path, "x", nothing)
    assert recorded(tmp_path, "x") == nothing


def test_every_damage_of_a_record_is_noticed(photos):
    folder = photos.parent / "results/fingerprints"
    before = identify(photos)
    record(folder, "photos", before)
    listing = next(folder.glob("*.files"))
    data = listing.read_bytes()
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 4
        listing.write_bytes(damaged)
        # Spaces and the like in the header may change; what is read is right or refused.
        assert recorded(folder, "photos") in (None, before)
    for size in (0, 10, len(data) - 1):
        listing.write_bytes(data[:size])
        assert recorded(folder, "photos") is None
        with pytest.raises(InputError, match="damaged"):
            recorded_files(folder, before.digest)
    with pytest.raises(InputError, match="not there"):
        recorded_files(folder, "0" * 64)


def test_long_reading_is_said_in_one_line(photos, monkeypatch, capsys):
    identify(photos)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(fingerprints, "_QUIET_SECONDS", -1.0)
    monkeypatch.setattr(fingerprints, "_CHUNK", 1)
    identify(photos)
    said = capsys.readouterr().err
    assert said == "photos: reading 4 new or changed files to identify them\n"
