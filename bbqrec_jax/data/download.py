"""Files from the web: resumed where a download stopped, checked against a recorded checksum."""

import hashlib
import http.client
import json
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Sequence

from absl import logging

from bbqrec_jax.data import cache
from bbqrec_jax.errors import UserError

CHECKSUMS = "checksums.json"  # In the folder of the files: name -> sha256, size, mtime_ns.

_TIMEOUT_SECONDS = 30
_TRIES = 3  # For each address; every try goes on where the one before it stopped.


def fetch(urls: Sequence[str], path: str):
  """Downloads a file from the first address that has it.

  The bytes go to a .part file, which a later call resumes (HTTP Range) from the same address,
  and which is renamed once it is whole.

  Raises UserError if no address gives the whole file.
  """
  try:
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
  except OSError as error:
    raise UserError(f"{path}: its folder cannot be made ({error.strerror}).") from error
  reasons = []
  for url in urls:
    # Named after the address: another mirror's bytes may differ, and must not be joined to these.
    part = f"{path}.{hashlib.sha256(url.encode()).hexdigest()[:8]}.part"
    logging.info("Downloading %s to %s.", url, path)
    for _ in range(_TRIES):
      try:
        _resume(url, part)
        os.replace(part, path)
        return
      except urllib.error.HTTPError as error:
        reason = f"{url}: {error.code} {error.reason}"
        break  # The server's answer will not change.
      except (OSError, http.client.HTTPException) as error:
        reason = f"{url}: {error}"
    reasons.append(reason)
  raise UserError(
    f"{path}: not there, and it could not be downloaded ({'; '.join(reasons)}); "
    "run again to resume, or fetch the file by hand and put it there."
  )


def verify(path: str) -> str:
  """The file's sha256, which must be the one recorded, if there is a record.

  The file is read again only if its time of modification changed since.

  Raises UserError if size or checksum differ, or the record cannot be read.
  """
  record_path = os.path.join(os.path.dirname(path), CHECKSUMS)
  name = os.path.basename(path)
  records = _read_records(record_path)
  stat = os.stat(path)
  known = records.get(name)
  if known and known["size"] == stat.st_size and known["mtime_ns"] == stat.st_mtime_ns:
    return known["sha256"]
  digest = cache.sha256(path)
  if known and known["sha256"] != digest:
    raise UserError(
      f"{path}: differs from the checksum recorded in {record_path}; delete the file to fetch it "
      "again, or its entry there if you replaced it on purpose."
    )
  return digest


def remember(path: str, digest: str) -> None:
  """Records the file's sha256, for verify(): once the file has been read and found good."""
  record_path = os.path.join(os.path.dirname(path), CHECKSUMS)
  records, stat = _read_records(record_path), os.stat(path)
  entry = dict(sha256=digest, size=stat.st_size, mtime_ns=stat.st_mtime_ns)
  if records.get(os.path.basename(path)) == entry:
    return
  records[os.path.basename(path)] = entry
  text = json.dumps(records, indent=2, sort_keys=True)
  cache.write(record_path, lambda file: file.write(text.encode()))


def _read_records(path: str) -> dict:
  if not os.path.isfile(path):
    return {}
  try:
    with open(path, encoding="utf-8") as file:
      records = json.load(file)
    for entry in records.values():  # What verify() reads.
      entry["sha256"], entry["size"], entry["mtime_ns"]
  except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
    raise UserError(
      f"{path}: no record of checksums in JSON ({error}); delete it, it is made again."
    ) from error
  return records


def _resume(url: str, part: str):
  """Brings the .part file to its full length; raises OSError if the connection ends before."""
  start = os.path.getsize(part) if os.path.exists(part) else 0
  request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
  try:
    response = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
  except urllib.error.HTTPError as error:
    # 416: nothing is left to send. Whole if the length agrees; otherwise the file has changed.
    if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{start}":
      return
    if error.code == 416:
      os.remove(part)
      raise ConnectionError("the partial file was longer than the remote one") from error
    raise
  with response:
    resumed = response.status == 206
    length = response.headers.get("Content-Length")
    with open(part, "ab" if resumed else "wb") as file:
      shutil.copyfileobj(response, file, 2**20)
      received = file.tell() - (start if resumed else 0)
  if length is not None and received != int(length):
    raise ConnectionError(f"the connection ended after {received} of {length} bytes")
