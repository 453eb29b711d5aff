"""The launch files for many processes, as far as a machine without their schedulers can tell.

Scripts run against stand-ins of what they call; YAML is held against the published schemas.
"""

import functools
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import tomllib
from typing import ClassVar

import pytest
from absl import flags

from bbqrec_jax import main

ROOT = pathlib.Path(__file__).resolve().parents[1]
KUBERNETES = ROOT / "launch" / "kubernetes"
LOCAL, SLURM, TPU = "launch/local_multiprocess.sh", "launch/slurm.sbatch", "launch/tpu_pod.sh"
ARGS = ("--config=configs/quickstart.py", "--workdir=runs/a b")
MODULE = ("-m", "bbqrec_jax.main")

# Writes environment and arguments into a file of its own, each with a line, then does $DO.
PYTHON = f"""#!/usr/bin/env bash
if [[ "$1" == -c ]]; then exec {sys.executable} "$@"; fi
if [[ "$2" == pip ]]; then echo "${{@: -1}}" >> "$CALLS/installed"; fi
if [[ "$2" != bbqrec_jax.main ]]; then exit; fi
{{ env; printf "argument %s\\n" "$@"; }} > "$CALLS/writing-$$"
mv "$CALLS/writing-$$" "$CALLS/call-$$"
eval "${{DO:-}}"
"""


class Call:
  """What a stand-in was started with."""

  def __init__(self, path: pathlib.Path):
    lines = path.read_text().splitlines()
    self.args = tuple(line[len("argument ") :] for line in lines if line.startswith("argument "))
    self.env = dict(line.split("=", 1) for line in lines if re.match(r"\w+=", line))


@pytest.fixture
def clone(tmp_path):
  """A copy of the launch files in a folder whose .venv has a stand-in for Python.

  `clone.add(name, body)` puts another stand-in on PATH, `clone.start(command, ...)` runs one.
  """
  if not shutil.which("setsid"):
    pytest.skip("needs Linux")
  root = tmp_path / "clone"
  shutil.copytree(ROOT / "launch", root / "launch")
  for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
    shutil.copy(ROOT / name, root / name)

  class Clone:
    folder = root
    calls_dir = tmp_path / "calls"
    bin_dir = tmp_path / "bin"
    started: ClassVar[list[subprocess.Popen]] = []

    def add(self, name: str, body: str) -> None:
      _write_script(self.bin_dir / name, f"#!/usr/bin/env bash\n{body}")

    def start(self, *command: str, **env: str) -> subprocess.Popen:
      inherited = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
      inherited |= dict(PATH=f"{self.bin_dir}:{os.environ['PATH']}", CALLS=str(self.calls_dir))
      process = subprocess.Popen(
        command,
        cwd=root,
        env=inherited | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # A group of its own, for signals such as a terminal sends.
        # Where the tests themselves run in the background, Ctrl-C is ignored, and bash keeps to it.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
      )
      self.started.append(process)
      return process

    def run(self, *command: str, **env: str) -> subprocess.CompletedProcess:
      process = self.start(*command, **env)
      out, err = process.communicate(timeout=60)
      return subprocess.CompletedProcess(command, process.returncode, out, err)

    def calls(self) -> list[Call]:
      """Of Python, in the order of --process_id."""
      calls = [Call(path) for path in self.calls_dir.glob("call-*")]
      return sorted(calls, key=lambda call: call.args[-1])

    def running(self) -> list[int]:
      """The process ids of the Pythons that have not ended."""
      pids = [int(path.name.removeprefix("call-")) for path in self.calls_dir.glob("call-*")]
      return [pid for pid in pids if pathlib.Path(f"/proc/{pid}").exists()]

  clone = Clone()
  clone.root = root
  clone.calls_dir.mkdir()
  clone.bin_dir.mkdir()
  _write_script(root / ".venv" / "bin" / "python", PYTHON)
  yield clone
  for process in clone.started:  # What a failed test left behind.
    if process.poll() is None:
      os.killpg(process.pid, signal.SIGKILL)
  for pid in clone.running():
    os.kill(pid, signal.SIGKILL)


def _write_script(path: pathlib.Path, text: str) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  path.chmod(0o755)


def _wait_until(condition, seconds: float = 30.0) -> None:
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline, "nothing happened"
    time.sleep(0.05)


def _parse(args: tuple[str, ...]) -> flags.FlagValues:
  """What the command makes of the arguments, in the repository's root or an image."""
  flag_values = flags.FlagValues()
  main.define_flags(flag_values)
  config = re.compile(r"^--config=(/app/)?")
  main.parse_flags(["main", *(config.sub(f"--config={ROOT}/", arg) for arg in args)], flag_values)
  return flag_values


@pytest.mark.parametrize("script", [LOCAL, SLURM, TPU])
def test_scripts_parse(script):
  subprocess.run(["bash", "-n", ROOT / script], check=True)
  assert script == SLURM or os.access(ROOT / script, os.X_OK)
  if shutil.which("shellcheck"):
    subprocess.run(["shellcheck", ROOT / script], check=True)


def test_extras_that_launch_files_install_exist():
  extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
  named = set()
  for path in (ROOT / SLURM, ROOT / TPU, KUBERNETES / "Dockerfile"):
    named |= set(re.findall(r"EXTRAS[-=]+(\w+)", path.read_text()))
  assert named == {"gpu", "tpu"} and named <= set(extras)


def test_local_processes_differ_in_their_number_alone(clone):
  say = 'echo "out $JAX_LOCAL_DEVICE_IDS"; echo "err $JAX_LOCAL_DEVICE_IDS" >&2'
  done = clone.run(LOCAL, "3", *ARGS, DO=say)
  assert done.returncode == 0, done.stderr
  ports = set()
  for i, call in enumerate(clone.calls()):
    assert call.args[: len(MODULE + ARGS)] == MODULE + ARGS
    values = _parse(call.args[len(MODULE) :])
    assert (values.num_processes, values.process_id) == (3, i)
    assert call.env["JAX_LOCAL_DEVICE_IDS"] == str(i)
    assert call.env["JAX_COORDINATOR_BIND_ADDRESS"] == values.coordinator
    assert call.env["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    host, port = values.coordinator.split(":")
    assert host == "127.0.0.1" and 1024 <= int(port) < 2**16
    ports.add(port)
  assert i == 2 and len(ports) == 1
  assert sorted(done.stdout.splitlines()) == ["[1] out 1", "[2] out 2", "out 0"]
  lines = [line for line in done.stderr.splitlines() if "err" in line]
  assert sorted(lines) == ["[1] err 1", "[2] err 2", "err 0"]


def test_local_without_arguments_is_the_quickstart(clone):
  assert clone.run(LOCAL, "1").returncode == 0
  (call,) = clone.calls()
  run = (ROOT / "launch" / "run").read_text()
  assert " ".join(call.args[2:4]) in run


@pytest.mark.parametrize("count", [(), ("0",), ("two",), ("-1",), ("--config=x",)])
def test_local_refuses_what_is_no_number_of_processes(clone, count):
  done = clone.run(LOCAL, *count)
  assert done.returncode == 1 and "number of processes" in done.stderr
  assert not clone.calls() and len(done.stderr.splitlines()) == 1


READY = 'touch "$CALLS/ready-$JAX_LOCAL_DEVICE_IDS"'


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("moment", ["any", "listing"])  # It lists processes in a subshell.
def test_local_passes_signals_on_once(clone, signum, moment):
  script = clone.folder / LOCAL
  if moment == "listing":
    text = script.read_text()
    assert text.count("jobs -pr") == 1
    script.write_text(text.replace("jobs -pr", "sleep 2; jobs -pr"))
  note = f"trap 'echo signalled >> \"$CALLS/signals\"' {signum:d}"
  wait = 'until [[ -s "$CALLS/signals" ]]; do sleep 0.05; done; sleep 1; echo saved'
  process = clone.start(LOCAL, "2", *ARGS, DO=f"{note}; {READY}; {wait}; exit {128 + signum}")
  _wait_until(lambda: len(list(clone.calls_dir.glob("ready-*"))) == 2)
  os.killpg(process.pid, signum)  # To everything of a terminal's group, as Ctrl-C does.
  out, _ = process.communicate(timeout=30)
  assert process.returncode == 128 + signum
  assert sorted(out.splitlines()) == ["[1] saved", "saved"]
  assert (clone.calls_dir / "signals").read_text().split() == ["signalled"] * 2


def test_local_stops_the_others_when_one_fails(clone):
  fails = 'until [[ -e "$CALLS/ready-0" && -e "$CALLS/ready-2" ]]; do sleep 0.05; done; exit 7'
  waits = f'trap "echo told; exit 143" TERM; {READY}; while :; do sleep 0.05; done'
  is_deaf = f'trap "" TERM; {READY}; while :; do sleep 0.05; done'  # It has to be killed.
  ways = f"case $JAX_LOCAL_DEVICE_IDS in 0) {waits} ;; 1) {fails} ;; 2) {is_deaf} ;; esac"
  done = clone.run(LOCAL, "3", *ARGS, DO=ways, BBQREC_GRACE_SECONDS="1")
  assert done.returncode == 7 and "process 1 ended with status 7" in done.stderr
  assert "told" in done.stdout
  assert "Killed" not in done.stderr  # Which bash would say, with the script's text.
  assert len(clone.calls()) == 3 and not clone.running()


SRUN = r"""
printf "%s\n" "srun $*" >> "$CALLS/slurm"
compgen -G ".venv/installed*" > /dev/null || echo "nothing is installed" >> "$CALLS/slurm"
while [[ "$1" == --* ]]; do shift; done
"$@"
exit "$STATUS"
"""
SCONTROL = r"""
printf "%s\n" "scontrol $*" >> "$CALLS/slurm"
echo "   JobState=$STATE Reason=None"
"""


def _submit(clone, *args: str, **env: str) -> tuple[subprocess.CompletedProcess, list[str]]:
  """Runs a copy of the batch script in another folder, as Slurm does; its result and commands."""
  clone.add("srun", SRUN)
  clone.add("scontrol", SCONTROL)
  script = clone.root.parent / "slurm_script"
  shutil.copy(clone.root / SLURM, script)
  slurm = dict(SUBMIT_DIR=str(clone.root), JOB_ID="42", NTASKS_PER_NODE="1", GPUS_ON_NODE="4")
  slurm = {f"SLURM_{name}": value for name, value in slurm.items()}
  done = clone.run("bash", str(script), *args, **(dict(STATUS="0", STATE="RUNNING") | slurm | env))
  path = clone.calls_dir / "slurm"
  return done, path.read_text().splitlines() if path.exists() else []


def test_slurm_starts_one_process_per_node_with_all_its_gpus(clone):
  done, commands = _submit(clone, *ARGS, SLURM_CPUS_PER_TASK="32")
  assert done.returncode == 0, done.stderr
  options = "--label --kill-on-bad-exit=1 --cpus-per-task=32"
  assert commands == [f"srun {options} launch/run --distributed {' '.join(ARGS)}"]
  (call,) = clone.calls()
  assert call.args == (*MODULE, "--distributed", *ARGS) and _parse(call.args[2:]).distributed
  assert call.env["JAX_LOCAL_DEVICE_IDS"] == "0,1,2,3"
  assert (clone.calls_dir / "installed").read_text().split() == [".[gpu]"]


def test_slurm_leaves_one_gpu_per_task_and_nodes_without_gpus_to_jax(clone):
  _, commands = _submit(clone, *ARGS, SLURM_NTASKS_PER_NODE="4", BBQREC_EXTRAS="")
  assert "cpus" not in commands[0]
  (call,) = clone.calls()
  assert "JAX_LOCAL_DEVICE_IDS" not in call.env
  assert (clone.calls_dir / "installed").read_text().split() == ["."]


@pytest.mark.parametrize(
  ("status", "state", "restarts", "requeued", "said"),
  [
    (0, "RUNNING", "0", False, ""),
    (143, "RUNNING", "0", True, "goes on as restart 1"),
    (143, "RUNNING", "99", True, "goes on as restart 100"),
    (143, "RUNNING", "100", False, "restarted 100 times"),
    (143, "COMPLETING", "0", False, "the same command goes on"),
    (1, "RUNNING", "0", False, ""),
    (137, "RUNNING", "0", False, ""),
  ],
)
def test_slurm_requeues_what_was_saved(clone, status, state, restarts, requeued, said):
  env = dict(STATUS=str(status), STATE=state, SLURM_RESTART_COUNT=restarts)
  done, commands = _submit(clone, *ARGS, **env)
  assert done.returncode == status and said in done.stderr
  assert ("scontrol requeue 42" in commands) == requeued


def test_slurm_refuses_what_it_cannot_run(clone):
  done, _ = _submit(clone)
  assert done.returncode == 1 and "say what to run" in done.stderr
  done = clone.run("bash", SLURM, *ARGS)
  assert done.returncode == 1 and "start it by sbatch" in done.stderr
  done = clone.run("bash", SLURM, *ARGS, SLURM_SUBMIT_DIR=str(clone.root.parent))
  assert done.returncode == 1 and "repository's root" in done.stderr
  assert not clone.calls()


def test_slurm_options_stand_where_sbatch_reads_them():
  head, _, rest = (ROOT / SLURM).read_text().partition("set -euo pipefail")
  options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", head, re.M))
  assert len(options) == head.count("#SBATCH") and "#SBATCH" not in rest
  assert options["signal"] == "TERM@120"  # Without B:, which would spare the tasks.
  assert options["ntasks-per-node"] == "1" and int(options["nodes"]) > 1
  assert options["requeue"] == "" and options["open-mode"] == "append"


# Two hosts are two folders. A host's processes are those of whom $HOME/pids tells.
GCLOUD = r"""
printf "%s\n" "$*" >> "$CALLS/gcloud"
status=0
for host in "$HOSTS"/*; do
  case "$4" in
    scp) cp "$5" "$host/${6#*:}" ;;
    ssh) (cd "$host" && HOME="$host" bash -c "${7#--command=}") || status=$? ;;
  esac
done
exit $status
"""
PGREP = r"""
found=1
for pid in $(cat "$HOME/pids" 2> /dev/null); do
  if kill -0 "$pid" 2> /dev/null; then echo "$pid"; found=0; fi
done
exit $found
"""


@pytest.fixture
def tpu(clone):
  """A clone with a stand-in for gcloud, and two hosts in `clone.hosts`."""
  for name in ("bbqrec_jax", "configs"):
    (clone.root / name / "__pycache__").mkdir(parents=True)
    (clone.root / name / "__pycache__" / "old.pyc").touch()
    (clone.root / name / "file.py").touch()
  clone.hosts = [clone.root.parent / "hosts" / name for name in ("a", "b")]
  for host in clone.hosts:
    _write_script(host / "bbqrec_jax" / ".venv" / "bin" / "python", PYTHON)
  clone.add("gcloud", GCLOUD)
  clone.add("pgrep", PGREP)
  clone.env = dict(HOSTS=str(clone.hosts[0].parent), USER="me")
  return clone


def test_tpu_run_copies_the_tree_and_starts_a_process_on_every_host(tpu):
  say = 'echo "from $PWD"; echo broken >&2; [[ "$PWD" == */a/* ]] || exit 7'
  done = tpu.run(TPU, "run", "pod", *ARGS, DO=say, **tpu.env)
  assert done.returncode == 7
  assert [f"from {host}/bbqrec_jax" in done.stdout for host in tpu.hosts] == [True, True]
  assert done.stdout.count("broken") == 2
  log = (tpu.calls_dir / "gcloud").read_text()
  commands = re.findall(r"^compute tpus tpu-vm (.*?)$", log, re.M)
  assert [command.split()[0] for command in commands] == ["ssh", "scp", "ssh"]
  assert all("--worker=all" in command for command in commands)
  calls = tpu.calls()
  assert [call.args for call in calls] == [(*MODULE, "--distributed", *ARGS)] * 2
  assert {call.env["PWD"] for call in calls} == {f"{host}/bbqrec_jax" for host in tpu.hosts}
  assert set((tpu.calls_dir / "installed").read_text().split()) == {".[tpu]"}
  with tarfile.open(tpu.hosts[1] / "bbqrec_jax.tar.gz") as archive:
    names = set(archive.getnames())
  assert {"bbqrec_jax/file.py", "configs/file.py", "launch/run", "launch/setup"} <= names
  assert not any("__pycache__" in name or ".venv" in name for name in names)


def test_tpu_run_refuses_while_a_run_is_going_on(tpu):
  (tpu.hosts[1] / "pids").write_text(str(os.getpid()))
  done = tpu.run(TPU, "run", "pod", *ARGS, **tpu.env)
  assert done.returncode == 1 and "tpu_pod.sh stop pod" in done.stderr
  assert not tpu.calls() and "scp" not in (tpu.calls_dir / "gcloud").read_text()


def test_tpu_stop_signals_every_host_and_waits(tpu):
  saving = "import signal, sys, time\n"
  saving += "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), sys.exit(143)))\n"
  saving += "print(flush=True); time.sleep(60)"
  processes = []
  for host in tpu.hosts:
    process = subprocess.Popen([sys.executable, "-c", saving], stdout=subprocess.PIPE)
    process.stdout.readline()  # It listens now.
    processes.append(process)
    (host / "pids").write_text(str(process.pid))
  stop = tpu.start(TPU, "stop", "pod", **tpu.env)
  _wait_until(lambda: [process.poll() for process in processes] and stop.poll() is not None)
  assert stop.returncode == 0
  assert [process.returncode for process in processes] == [143, 143]
  assert tpu.run(TPU, "stop", "pod", **tpu.env).returncode == 0  # Nothing is left to stop.


@pytest.mark.parametrize("args", [(), ("start", "pod"), ("run", "pod"), ("stop",)])
def test_tpu_refuses_what_it_cannot_do(tpu, args):
  done = tpu.run(TPU, *args, **tpu.env)
  assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
  assert not (tpu.calls_dir / "gcloud").exists()


def _read_yaml(name: str) -> dict:
  return pytest.importorskip("yaml").safe_load((KUBERNETES / name).read_text())


def _jobset() -> tuple[dict, dict, dict, dict]:
  """The JobSet's spec, its job's, its pods' and their container."""
  spec = _read_yaml("jobset.yaml")["spec"]
  (job,) = spec["replicatedJobs"]
  pod = job["template"]["spec"]["template"]["spec"]
  (container,) = pod["containers"]
  return spec, job["template"]["spec"], pod, container


@pytest.mark.parametrize(
  ("name", "model"),
  [
    ("jobset.yaml", "JobsetV1alpha2JobSet"),
    ("volume.yaml", "IoK8sApiCoreV1PersistentVolumeClaim"),
  ],
)
def test_kubernetes_files_fit_the_published_schemas(name, model):
  models = pytest.importorskip("kubeflow_trainer_api.models")
  content = _read_yaml(name)
  # Types and values are checked; a field that the schema does not have gets lost.
  assert getattr(models, model).from_dict(content).to_dict() == content
  assert content["apiVersion"] == {"jobset.yaml": "jobset.x-k8s.io/v1alpha2"}.get(name, "v1")


def test_jobset_tells_each_process_which_it_is():
  content = _read_yaml("jobset.yaml")
  spec, job, _, container = _jobset()
  (replicated,) = spec["replicatedJobs"]
  coordinator = spec["coordinator"]
  assert coordinator == dict(replicatedJob=replicated["name"], jobIndex=0, podIndex=0)
  assert spec["network"]["enableDNSHostnames"] and replicated["replicas"] == 1
  assert job["completionMode"] == "Indexed"  # Only then does a pod know JOB_COMPLETION_INDEX.
  name = content["metadata"]["name"]
  host = f"{name}-{replicated['name']}-0-0"
  assert len(host) <= 63  # A label of a DNS name.
  env = {variable["name"]: variable for variable in container["env"]}
  reference = env["COORDINATOR"]["valueFrom"]["fieldRef"]["fieldPath"]
  assert reference == "metadata.annotations['jobset.sigs.k8s.io/coordinator']"
  for index in range(job["completions"]):
    known = {"COORDINATOR": f"{host}.{name}", "JOB_COMPLETION_INDEX": str(index)}
    expand = lambda arg, known=known: re.sub(r"\$\((\w+)\)", lambda m: known[m[1]], arg)
    values = _parse(tuple(map(expand, container["args"])))
    assert (values.num_processes, values.process_id) == (job["completions"], index)
    port = container["ports"][0]["containerPort"]
    assert values.coordinator == f"bbqrec-train-0-0.bbqrec:{port}"
  assert job["completions"] == job["parallelism"] > 1


def test_jobset_goes_on_by_itself():
  spec, job, pod, container = _jobset()
  assert spec["failurePolicy"]["maxRestarts"] > 0
  assert job["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"
  assert pod["terminationGracePeriodSeconds"] >= 60
  (rule,) = spec["failurePolicy"]["rules"]
  assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
  assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
  stopped, evicted = job["podFailurePolicy"]["rules"]
  assert stopped["action"] == evicted["action"] == "FailJob"
  codes = stopped["onExitCodes"]
  assert codes["containerName"] == container["name"]
  assert codes["values"] == [128 + signal.SIGINT, 128 + signal.SIGTERM]
  # A mistake of the user, or of the program, ends with status 1: that is counted.
  assert codes["operator"] == "In" and evicted["onPodConditions"][0]["type"] == "DisruptionTarget"


def test_jobset_volumes_and_user_fit_the_image():
  _, _, pod, container = _jobset()
  mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
  volumes = {volume["name"]: volume for volume in pod["volumes"]}
  assert mounts.keys() == volumes.keys()
  claim = _read_yaml("volume.yaml")
  assert volumes["runs"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
  assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
  dockerfile = (KUBERNETES / "Dockerfile").read_text()
  assert re.findall(r"^WORKDIR (.*)$", dockerfile, re.M)[-1] == mounts["runs"] == "/runs"
  user = pod["securityContext"]["runAsUser"]
  assert user == pod["securityContext"]["fsGroup"] != 0
  assert re.findall(r"^USER (.*)$", dockerfile, re.M) == [str(user)]
  assert f"--uid={user} --home-dir=/runs" in dockerfile


def test_image_is_given_what_it_copies():
  allowed = (ROOT / ".dockerignore").read_text().splitlines()
  dockerfile = (KUBERNETES / "Dockerfile").read_text()
  copied = " ".join(re.findall(r"^COPY (.*) \S+$", dockerfile, re.M)).split()
  assert {f"!{name}" for name in copied} == {line for line in allowed if line.startswith("!")}
  assert "*" in allowed and all((ROOT / name).exists() for name in copied)
  # The requirements' layer comes before the code, so that a change of the code keeps it.
  assert dockerfile.index("pip install") < dockerfile.index("COPY bbqrec_jax")
