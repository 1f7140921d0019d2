"""A machine whose programs only write down what they are told, for the launch scripts."""

import os
import pathlib
import shlex
import shutil
import subprocess
import time

ROOT = pathlib.Path(__file__).parents[1]


TRAINING = ["--config=configs/imagenet256.py", "--workdir=gs://bucket/a run"]


FLAGS = ["--config.train.steps=5", "--config.data.dir=it's here; $HOME", "--empty="]


TPU_FLAGS = ["--name=n", "--zone=z"]


GCLOUD = ["gcloud", "compute", "tpus"]


DESCRIBE_REQUEST = GCLOUD + [
    "queued-resources",
    "describe",
    "n",
    "--zone=z",
    "--format=value(state.state)",
]


# Writes down what it was called with.
RECORD = r"""#!/usr/bin/env bash
{ printf '%s\037' "${0##*/}" "$@"; printf '\036'; } >> "$RECORDED"
"""


# Writes down its arguments and goes on until SIGTERM or a file `end`, which holds its exit code.
PROGRAM = (
    """#!/usr/bin/env bash
trap 'echo "stopped by SIGTERM" >&2; exit 0' TERM
"""
    + RECORD
    + """
until [ -e end ]; do sleep 0.02; done
[ "$(cat end)" != 0 ] || echo "done: 5 steps" >&2
exit "$(cat end)"
"""
)


# A cloud: a request is granted at once, and each look at the run takes an answer from `script`.
CLOUD = (
    RECORD
    + """
case "$*" in
  *"queued-resources describe"*)
    cat request 2> /dev/null || { echo "ERROR: NOT_FOUND: no such resource" >&2; exit 1; } ;;
  *"queued-resources create"*) echo ACTIVE > request ;;
  *"queued-resources delete"*) rm request ;;
  *"tpu-vm describe"*) echo READY ;;
  *"worker.sh status"*)
    answer="$(head -n 1 script)"
    sed -i 1d script
    if [ "$answer" = preempted ]; then echo SUSPENDED > request; exit 255; fi
    echo "$answer" ;;
esac
"""
)


class Machine:
    """A folder to work in, with programs on its PATH that only write down how they were called."""

    def __init__(self, place):
        self.folder, self.record = place, place / "recorded"
        (place / "bin").mkdir()
        self.environment = os.environ | dict(
            PATH=f"{place / 'bin'}:/usr/bin:/bin",
            RECORDED=str(self.record),
            HOME=str(place),
            TMPDIR=str(place),
        )

    def add_program(self, name, text=RECORD):
        program = self.folder / "bin" / name
        program.write_text(text)
        program.chmod(0o755)

    def calls(self):
        text = self.record.read_text() if self.record.exists() else ""
        return [call.split("\037")[:-1] for call in text.split("\036")[:-1]]

    def run(self, script, *arguments, code=0, root=ROOT, **environment):
        """What the script printed, as a list of commands; its errors."""
        done = subprocess.run(
            ["bash", root / "launch" / script, *arguments],
            cwd=self.folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return [shlex.split(line, comments=True) for line in done.stdout.splitlines()], done.stderr

    def checkout(self):
        """A copy of the scripts as it lies on a worker."""
        shutil.copytree(ROOT / "launch", self.folder / "tp_jax" / "launch")
        return self.folder / "tp_jax"


def wait_until(what):
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)
