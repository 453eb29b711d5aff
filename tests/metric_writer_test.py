"""metrics.jsonl is whole and strict JSON, and a resumed run leaves no step in it twice."""

import json
import math
import struct

import jax.numpy as jnp
import pytest
from tensorboardX.proto import event_pb2

from bbqrec_jax import metric_writer


def read_lines(workdir) -> list[dict]:
  def refuse(constant):
    raise AssertionError(f"{constant} is not standard JSON.")

  text = (workdir / "metrics.jsonl").read_text()
  return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def read_events(directory) -> list[event_pb2.Event]:
  """All events of a directory, by the TFRecord format: length, its CRC, the data, its CRC."""
  events = []
  for path in sorted(directory.iterdir()):
    data = path.read_bytes()
    while data:
      (size,) = struct.unpack("<Q", data[:8])
      events.append(event_pb2.Event.FromString(data[12 : 12 + size]))
      data = data[16 + size :]
  return events


def test_lines_and_events_hold_what_was_written(tmp_path):
  with metric_writer.MetricWriter(tmp_path) as writer:
    writer.write(3, "tokenizer", {"loss": jnp.float32(0.5), "valid/recall@10": 0.25})
    lines = read_lines(tmp_path)  # On disk already, before close().
  assert [(line["stage"], line["step"]) for line in lines] == [("tokenizer", 3)]
  assert lines[0]["metrics"] == {"loss": 0.5, "valid/recall@10": 0.25}
  values = {
    value.tag: (event.step, value.simple_value)
    for event in read_events(tmp_path / "tensorboard" / "tokenizer")
    for value in event.summary.value
  }
  assert values == {"tokenizer/loss": (3, 0.5), "tokenizer/valid/recall_10": (3, 0.25)}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_has_no_word_for_is_null(tmp_path, value):
  with metric_writer.MetricWriter(tmp_path) as writer:
    writer.write(1, "ranker", {"loss": value})
  assert read_lines(tmp_path)[0]["metrics"] == {"loss": None}


def test_truncate_drops_the_later_steps_of_its_stage_only(tmp_path):
  with metric_writer.MetricWriter(tmp_path) as writer:
    for stage in ("tokenizer", "generator"):
      for step in (2, 3, 5):
        writer.write(step, stage, {"loss": 1.0})
  with metric_writer.MetricWriter(tmp_path) as writer:
    writer.truncate("generator", 3)
    writer.write(5, "generator", {"loss": 2.0})
  lines = [(line["stage"], line["step"], line["metrics"]["loss"]) for line in read_lines(tmp_path)]
  tokenizer = [("tokenizer", step, 1.0) for step in (2, 3, 5)]
  generator = [("generator", step, loss) for step, loss in ((2, 1.0), (3, 1.0), (5, 2.0))]
  assert lines == tokenizer + generator
  # TensorBoard hides events from a START mark's step on.
  marks = lambda stage: [
    event.step
    for event in read_events(tmp_path / "tensorboard" / stage)
    if event.HasField("session_log")
  ]
  assert (marks("generator"), marks("tokenizer")) == ([4], [])


def test_truncate_before_anything_was_written_is_fine(tmp_path):
  with metric_writer.MetricWriter(tmp_path) as writer:
    writer.truncate("tokenizer", 0)
    writer.write(1, "tokenizer", {"loss": 1.0})
  assert len(read_lines(tmp_path)) == 1


@pytest.mark.parametrize("torn", ['{"stage": "rank', ""])
def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path, torn):
  with metric_writer.MetricWriter(tmp_path) as writer:
    writer.write(1, "ranker", {"loss": 1.0})
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write(torn)
  with metric_writer.MetricWriter(tmp_path) as writer:
    writer.write(2, "ranker", {"loss": 1.0})
  assert [line["step"] for line in read_lines(tmp_path)] == [1, 2]


def test_truncate_drops_damaged_lines(tmp_path):
  path = tmp_path / "metrics.jsonl"
  with metric_writer.MetricWriter(tmp_path) as writer:
    writer.write(1, "ranker", {"loss": 1.0})
  damaged = (b"{", b"\xff\xfe", b"\0" * 50, b"[]", b"{}", b'{"stage": "ranker", "step": "2"}')
  path.write_bytes(b"\n".join((*damaged, path.read_bytes())))
  with metric_writer.MetricWriter(tmp_path) as writer:
    writer.truncate("ranker", 1)
  assert [line["step"] for line in read_lines(tmp_path)] == [1]
