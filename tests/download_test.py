import functools
import hashlib
import http.server
import json
import os
import re
import threading

import pytest

from bbqrec_jax.data import cache, download
from bbqrec_jax.errors import UserError

CONTENT = bytes(range(256)) * 701


class Handler(http.server.BaseHTTPRequestHandler):
  """Serves CONTENT under /file, with Range; breaks off `breaks` times after a third of it."""

  def __init__(self, log, breaks, *args):
    self.served, self.breaks = log, breaks
    super().__init__(*args)

  def do_GET(self):
    self.served.append((self.path, self.headers.get("Range")))
    if self.path == "/gone":
      self.send_error(404)
      return
    start = 0
    if self.path == "/file" and (asked := self.headers.get("Range")):
      start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
      if start >= len(CONTENT):
        self.send_response(416)
        self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
        self.end_headers()
        return
    body = CONTENT[start:]
    self.send_response(206 if start else 200)
    self.send_header("Content-Length", str(len(body)))
    self.end_headers()
    if self.breaks:
      self.breaks.pop()
      body = body[: len(CONTENT) // 3]
    self.wfile.write(body)

  def log_message(self, *_):
    pass


@pytest.fixture
def server():
  log, breaks = [], []
  handler = functools.partial(Handler, log, breaks)
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    running.served, running.breaks = log, breaks
    running.url = f"http://127.0.0.1:{running.server_port}"
    yield running
    running.shutdown()
    thread.join()


def test_the_whole_file_arrives_and_nothing_else_stays(server, tmp_path):
  path = tmp_path / "new" / "file"
  download.fetch([f"{server.url}/file"], str(path))
  assert path.read_bytes() == CONTENT
  assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_broken_download_goes_on_where_it_stopped(server, tmp_path):
  server.breaks += [1, 1]
  download.fetch([f"{server.url}/file"], str(tmp_path / "file"))
  assert (tmp_path / "file").read_bytes() == CONTENT
  third = len(CONTENT) // 3
  ranges = [None, f"bytes={third}-", f"bytes={2 * third}-"]
  assert server.served == [("/file", asked) for asked in ranges]


def test_a_later_call_resumes_what_an_earlier_one_left(server, tmp_path):
  server.breaks += [1, 1]
  path = tmp_path / "file"
  with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match="run again to resume"):
    patch.setattr(download, "_TRIES", 1)
    download.fetch([f"{server.url}/file"], str(path))
  assert not path.exists()
  download.fetch([f"{server.url}/file"], str(path))
  assert path.read_bytes() == CONTENT
  assert server.served[1] == ("/file", f"bytes={len(CONTENT) // 3}-")


def test_a_server_without_ranges_sends_everything_again(server, tmp_path):
  server.breaks += [1, 1]
  download.fetch([f"{server.url}/whole"], str(tmp_path / "file"))
  assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize("extra", [0, 5])
def test_a_part_that_is_whole_is_kept_and_one_that_is_too_long_is_not(server, tmp_path, extra):
  url, path = f"{server.url}/file", tmp_path / "file"
  part = tmp_path / f"file.{hashlib.sha256(url.encode()).hexdigest()[:8]}.part"
  part.write_bytes(CONTENT + bytes(extra))
  download.fetch([url], str(path))
  assert path.read_bytes() == CONTENT
  assert len(server.served) == (1 if extra == 0 else 2)


def test_mirrors_are_tried_in_turn(server, tmp_path):
  path = tmp_path / "file"
  download.fetch([f"{server.url}/gone", f"{server.url}/file"], str(path))
  assert path.read_bytes() == CONTENT
  with pytest.raises(UserError, match=r"other: not there, and .*gone: 404 .*put it there"):
    download.fetch([f"{server.url}/gone"], str(tmp_path / "other"))


def test_checksums_are_recorded_and_hold(tmp_path, monkeypatch):
  path = tmp_path / "file"
  path.write_bytes(b"content")
  digest = download.verify(str(path))
  assert not (tmp_path / "checksums.json").exists()  # Only of what was found good.
  download.remember(str(path), digest)
  record = json.loads((tmp_path / "checksums.json").read_text())["file"]
  assert record["sha256"] == digest == cache.sha256(str(path))
  with monkeypatch.context() as patch:  # Not read again while nothing has changed.
    patch.setattr(cache, "sha256", lambda _: pytest.fail("read again"))
    assert download.verify(str(path)) == digest
  path.write_bytes(b"CONTENT")
  os.utime(path, ns=(1, 1))
  with pytest.raises(UserError, match="differs from the checksum recorded"):
    download.verify(str(path))
