import errno
import hashlib
import io
import os
import shutil
import socket
import tarfile
import threading

import numpy as np
import pytest
from processes import GUARD

from dcase.data import resumable
from dcase.data.download import DownloadError, cache_folder, fetch, verified
from dcase.errors import DataError, DcaseError, OptionError

CONTENT = np.random.default_rng(0).bytes(1_000_000)
SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def url(server):
    server.files["/data/frames.npz"] = CONTENT
    return server.url("/data/frames.npz")


def ranges(server):
    return [headers.get("Range") for _, headers in server.requests]


def only_file(folder):
    return sorted(p.name for p in folder.iterdir())


def test_downloads_once_and_records_the_checksum(server, url, tmp_path):
    path = fetch(url, cache_dir=tmp_path, known_hash=SHA, progress=False)
    assert path == tmp_path / "frames.npz"
    assert path.read_bytes() == CONTENT
    assert only_file(tmp_path) == ["frames.npz", "frames.npz.sha256"]
    # The format that `sha256sum --check` reads.
    assert (tmp_path / "frames.npz.sha256").read_text() == f"{SHA}  frames.npz\n"
    assert fetch(url, cache_dir=tmp_path, progress=False) == path
    assert len(server.requests) == 1


def test_the_bar_goes_to_stderr(server, url, tmp_path, capfd):
    fetch(url, cache_dir=tmp_path, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "frames.npz" in err
    assert "SHA256 hash of downloaded file" not in err  # pooch's chatter


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("DCASE_DATA_DIR", str(tmp_path / "chosen"))
    assert cache_folder() == tmp_path / "chosen"
    assert cache_folder(tmp_path / "given") == tmp_path / "given"
    monkeypatch.delenv("DCASE_DATA_DIR")
    assert "dcase" in str(cache_folder())


def test_resumes_after_a_drop(server, url, tmp_path):
    server.drops = 1
    assert fetch(url, cache_dir=tmp_path, progress=False).read_bytes() == CONTENT
    first, second = ranges(server)
    assert first is None
    # Half of it came; the last, incomplete block of 64 kB may be asked for again.
    assert 430_000 < int(second.removeprefix("bytes=").removesuffix("-")) <= 500_000


def test_resumes_in_the_next_call(server, url, tmp_path):
    server.drops = 3
    with pytest.raises(DownloadError, match=r"broke after 0\.\d MB of 1\.0 MB") as error:
        fetch(url, cache_dir=tmp_path, progress=False)
    assert "goes on from there" in str(error.value)
    assert not (tmp_path / "frames.npz").exists()
    have = (tmp_path / "frames.npz.part").stat().st_size
    assert have > 700_000
    assert fetch(url, cache_dir=tmp_path, progress=False).read_bytes() == CONTENT
    assert ranges(server)[-1] == f"bytes={have}-"
    assert only_file(tmp_path) == ["frames.npz", "frames.npz.sha256"]


def test_without_ranges_it_starts_over(server, url, tmp_path):
    server.mode, server.drops = "no_range", 1
    assert fetch(url, cache_dir=tmp_path, progress=False).read_bytes() == CONTENT
    # A server that always breaks must not be asked for ever.
    server.drops = 100
    with pytest.raises(DownloadError, match="broke"):
        fetch(url, cache_dir=tmp_path / "b", progress=False)
    assert len(server.requests) < 6


def test_a_file_that_changed_meanwhile_is_not_glued_together(server, url, tmp_path):
    server.drops = 3
    with pytest.raises(DownloadError):
        fetch(url, cache_dir=tmp_path, progress=False)
    server.tag, server.files["/data/frames.npz"] = '"v2"', CONTENT[::-1]
    assert fetch(url, cache_dir=tmp_path, progress=False).read_bytes() == CONTENT[::-1]


def test_a_part_that_is_complete_already(server, url, tmp_path):
    (tmp_path / "frames.npz.part").write_bytes(CONTENT)
    assert fetch(url, cache_dir=tmp_path, progress=False).read_bytes() == CONTENT
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "frames.npz.part").write_bytes(CONTENT + b"too much")
    assert fetch(url, cache_dir=tmp_path / "b", progress=False).read_bytes() == CONTENT


def test_a_server_that_sends_the_wrong_range(server, url, tmp_path):
    (tmp_path / "frames.npz.part").write_bytes(CONTENT[:1000])
    server.mode = "wrong_range"
    with pytest.raises(DownloadError, match="another part"):
        fetch(url, cache_dir=tmp_path, progress=False)
    assert fetch(url, cache_dir=tmp_path, progress=False).read_bytes() == CONTENT


def test_truncated_content(server, url, tmp_path):
    server.mode = "truncate"
    with pytest.raises(DownloadError, match="broke after"):
        fetch(url, cache_dir=tmp_path, progress=False)
    assert not (tmp_path / "frames.npz").exists()


def test_truncated_content_of_unknown_length_fails_the_checksum(server, url, tmp_path):
    server.mode, server.drops = "no_length", 1
    with pytest.raises(DataError, match="wrong checksum") as error:
        fetch(url, cache_dir=tmp_path, known_hash=SHA, progress=False)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "frames.npz").exists()
    # And nothing of it is used by the next try.
    assert fetch(url, cache_dir=tmp_path, known_hash=SHA, progress=False).read_bytes() == CONTENT


def test_404(server, tmp_path):
    with pytest.raises(DownloadError, match="404 Not Found"):
        fetch(server.url("/nothing.npz"), cache_dir=tmp_path, progress=False)
    assert not (tmp_path / "nothing.npz").exists()


def test_a_server_that_stalls(server, url, tmp_path):
    server.mode = "stall"
    server.drops = 100
    # It is silent for as long as nobody releases it: this ends only if the client gives up.
    with pytest.raises(DownloadError, match="goes on"):
        fetch(url, cache_dir=tmp_path, progress=False, timeout=(GUARD, 0.2))
    assert not server.release.is_set()


def test_nobody_listens(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(DownloadError, match="no network: cannot connect") as error:
        fetch(f"http://127.0.0.1:{port}/a.npz", cache_dir=tmp_path, progress=False)
    assert "\n" not in str(error.value)


def test_unknown_host(tmp_path, monkeypatch):
    def fails(*args):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    with pytest.raises(DownloadError, match="no network: example.invalid is not found"):
        fetch("http://example.invalid/a.npz", cache_dir=tmp_path, progress=False)


def test_a_dead_name_server_does_not_hold_us_up(tmp_path, monkeypatch):
    done = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args: done.wait(GUARD))
    with pytest.raises(DownloadError, match="not found within 0.2 s"):
        fetch("http://example.invalid/a.npz", cache_dir=tmp_path, progress=False, timeout=0.2)
    assert not done.is_set()
    done.set()


def test_changed_files_are_noticed(server, url, tmp_path):
    path = fetch(url, cache_dir=tmp_path, progress=False)
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(DataError, match="has changed since it was downloaded") as error:
        fetch(url, cache_dir=tmp_path, progress=False)
    assert "delete it" in str(error.value)


def test_a_file_put_there_by_hand(server, url, tmp_path):
    (tmp_path / "frames.npz").write_bytes(b"mine")
    assert fetch(url, cache_dir=tmp_path, progress=False).read_bytes() == b"mine"
    assert server.requests == []
    assert verified(tmp_path / "frames.npz")
    with pytest.raises(DataError, match="checksum"):
        fetch(url, cache_dir=tmp_path, known_hash=SHA, progress=False)


def test_disk_full(server, url, tmp_path, monkeypatch):
    usage = shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match="1.0 MB to download, but only 1.0 kB free"):
        fetch(url, cache_dir=tmp_path, progress=False)


def test_disk_full_while_writing(server, url, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(resumable.ResumableDownloader, "_receive", full)
    with pytest.raises(DataError, match="the disk is full"):
        fetch(url, cache_dir=tmp_path, progress=False)


def test_a_cache_that_cannot_be_made(server, url, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DcaseError, match="cannot write") as error:
        fetch(url, cache_dir=tmp_path / "file" / "cache", progress=False)
    assert "\n" not in str(error.value)


def test_two_processes_do_not_mix(server, url, tmp_path):
    fcntl = pytest.importorskip("fcntl", reason="this system has no flock")
    with open(tmp_path / "frames.npz.part", "ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another process is downloading"):
            fetch(url, cache_dir=tmp_path, progress=False)


def test_only_the_web(tmp_path):
    with pytest.raises(OptionError, match="http"):
        fetch("file:///etc/passwd", cache_dir=tmp_path)


def test_ctrl_c_keeps_what_came(server, url, tmp_path, monkeypatch):
    monkeypatch.setattr(resumable, "BLOCK", 1000)
    blocks = iter(range(100))

    def show(done):
        if next(blocks) == 50:
            raise KeyboardInterrupt

    from contextlib import contextmanager

    @contextmanager
    def bar(*args):
        yield show

    with monkeypatch.context() as patch:
        patch.setattr(resumable, "_bar", bar)
        with pytest.raises(KeyboardInterrupt):
            fetch(url, cache_dir=tmp_path, progress=False)
    assert (tmp_path / "frames.npz.part").stat().st_size == 51_000
    assert fetch(url, cache_dir=tmp_path, progress=False).read_bytes() == CONTENT


def archive(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:bz2") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
            else:
                entry.type, entry.linkname = tarfile.SYMTYPE, str(content[0])
                tar.addfile(entry)
    return buffer.getvalue()


def test_one_member_of_an_archive(server, tmp_path):
    evil = {"../outside": b"evil", "/tmp/dcase_outside": b"evil"}
    server.files["/rmd17.tar.bz2"] = archive(evil | {"rmd17/npz_data/a.npz": CONTENT})
    url = server.url("/rmd17.tar.bz2")
    path = fetch(url, cache_dir=tmp_path / "c", extract="rmd17/npz_data/a.npz", progress=False)
    assert path == tmp_path / "c" / "a.npz"
    assert path.read_bytes() == CONTENT
    assert (tmp_path / "c" / "a.npz.sha256").read_text().startswith(SHA)
    assert not (tmp_path / "outside").exists()
    assert not os.path.exists("/tmp/dcase_outside")
    # The archive is not needed any more.
    (tmp_path / "c" / "rmd17.tar.bz2").unlink()
    fetch(url, cache_dir=tmp_path / "c", extract="rmd17/npz_data/a.npz", progress=False)
    assert len(server.requests) == 1


def test_archives_that_are_no_good(server, tmp_path):
    good = archive({"rmd17/a.npz": CONTENT, "link.npz": ("/etc/passwd",)})
    server.files["/a.tar.bz2"] = good
    url = server.url("/a.tar.bz2")
    with pytest.raises(DataError, match=r"has no member b\.npz"):
        fetch(url, cache_dir=tmp_path, extract="b.npz", progress=False)
    with pytest.raises(DataError, match="not a file"):
        fetch(url, cache_dir=tmp_path, extract="link.npz", progress=False)
    for i, damaged in enumerate((good[: len(good) // 2], b"<html>", good[:40000] + bytes(50000))):
        server.files["/a.tar.bz2"] = damaged
        with pytest.raises(DataError, match="damaged; delete it") as error:
            fetch(url, cache_dir=tmp_path / str(i), extract="rmd17/a.npz", progress=False)
        assert "\n" not in str(error.value)
        assert not (tmp_path / str(i) / "a.npz").exists()
