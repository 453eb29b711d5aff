"""Runs a module as `python -m` does, and writes how long JAX compiled meanwhile.

python benchmarks/lib/watch_compiles.py OUT.json MODULE [ARGUMENTS]

OUT.json is {"compile_s": of XLA, or of reading its result from the cache; "trace_s": of tracing and
lowering, which no cache saves (a jitted function inside another is counted twice); "num_hits",
"num_misses": of the persistent cache}.
"""

import collections
import runpy
import sys

from jax import monitoring

from bbqrec_jax import run_record

_COMPILE = "/jax/core/compile/backend_compile_duration"
_TRACE = (
  "/jax/core/compile/jaxpr_trace_duration",
  "/jax/core/compile/jaxpr_to_mlir_module_duration",
)
_CACHE = "/jax/compilation_cache/cache_{}"


def watch(out: str, module: str) -> None:
  """Runs the module to its end, and writes the figures even where it fails."""
  seconds, counts = collections.Counter(), collections.Counter()
  monitoring.register_event_duration_secs_listener(
    lambda event, duration, **_: seconds.update({event: duration})
  )
  monitoring.register_event_listener(lambda event, **_: counts.update([event]))
  try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
  finally:
    run_record.write_json(
      out,
      dict(
        compile_s=seconds[_COMPILE],
        trace_s=sum(seconds[event] for event in _TRACE),
        num_hits=counts[_CACHE.format("hits")],
        num_misses=counts[_CACHE.format("misses")],
      ),
    )


if __name__ == "__main__":
  out, module = sys.argv[1:3]
  sys.argv[1:3] = []
  watch(out, module)
