"""A fake machine for the launch scripts: its programs only record how they are called."""

import os
import pathlib
import shlex
import shutil
import subprocess
import time

ROOT = pathlib.Path(__file__).parents[1]


# A config and a workdir, as the launch scripts pass them to `tp_jax.main`.
TRAINING = ["--config=configs/imagenet256.py", "--workdir=gs://bucket/a run"]
# Flags after `--`, with characters that a shell would interpret.
FLAGS = ["--config.train.steps=5", "--config.data.dir=it's here; $HOME", "--empty="]
# The flags that choose the TPU VM.
TPU_FLAGS = ["--name=n", "--zone=z"]
GCLOUD = ["gcloud", "compute", "tpus"]
DESCRIBE_REQUEST = [
    *[*GCLOUD, "queued-resources", "describe"],
    *["n", "--zone=z", "--format=value(state.state)"],
]

# Records its name and arguments.
RECORD = r"""#!/usr/bin/env bash
{ printf '%s\037' "${0##*/}" "$@"; printf '\036'; } >> "$RECORDED"
"""

# Records its arguments and runs until SIGTERM, or until the file `end` gives its exit code.
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

# A fake gcloud: it grants a request at once and answers each query for the status of the run with
# the next line of the file `script`.
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
    """A folder to work in, and a PATH with programs that only record how they were called."""

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
        """Put a program on the PATH."""
        program = self.folder / "bin" / name
        program.write_text(text)
        program.chmod(0o755)

    def calls(self):
        """The recorded calls, each a list of the program's name and its arguments."""
        text = self.record.read_text() if self.record.exists() else ""
        return [call.split("\037")[:-1] for call in text.split("\036")[:-1]]

    def run(self, script, *arguments, code=0, root=ROOT, **environment):
        """Run a launch script; return the commands it printed, split into words, and its stderr."""
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
        """Make a checkout with the launch scripts, as a worker has it; return its folder."""
        shutil.copytree(ROOT / "launch", self.folder / "tp_jax" / "launch")
        return self.folder / "tp_jax"


def wait_until(condition):
    """Wait up to 20 seconds until `condition()` is true."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
