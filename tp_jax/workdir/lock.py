"""Hold a folder, so that only one run at a time writes to it.

The holder is named in `holder.json` in the folder: who it is, and when it gave the last sign of
life, which it renews every `BEAT_SECONDS`. Another run takes the folder over only if the holder is
dead for certain: it ran on the same machine and its process has ended, or it gives no sign of life
for `SILENT_SECONDS`. Silence is watched, because the clocks of two machines may differ. A holder
that was suspended, and finds that it was taken over, stops before it writes a checkpoint.

Local disks and NFS create files exclusively. In a bucket, the last one of several writers wins, so
that a new holder reads its own entry again after `SETTLE_SECONDS`.
"""

import contextlib
import dataclasses
import datetime
import errno
import getpass
import hashlib
import json
import os
import platform
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator

import jax
from etils import epath

from tp_jax.cli import signals
from tp_jax.files.atomic import write_bytes
from tp_jax.files.folders import HOLDER, make_folder
from tp_jax.messages.errors import TrainingError, UserError, WriteError
from tp_jax.messages.progress import say
from tp_jax.parallel.processes import run_on_first

BEAT_SECONDS, SILENT_SECONDS, SETTLE_SECONDS = 10.0, 300.0, 3.0
# A holder is watched for at least this long, even if its last sign of life seems to be old.
WATCH_SECONDS = 3 * BEAT_SECONDS
# Errors of file systems without hard links.
NO_LINKS = (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)


@dataclasses.dataclass(frozen=True)
class Holder:
    """A process that holds a folder.

    Attributes:
      token: a random name of this hold.
      host, user, pid: where and as whom the process runs.
      machine: identity of the running system and of its numbering of processes; "" if unknown.
      process_start: when the process started, as the system says it; with `pid`, it identifies the
        process.
      since, alive: when it took the folder, and its last sign of life; UTC, ISO 8601.
    """

    token: str
    host: str
    user: str
    pid: int
    machine: str
    process_start: str
    since: str
    alive: str

    def __str__(self) -> str:
        return (
            f"process {self.pid} of {self.user} on {self.host} since {self.since}, last sign of "
            f"life {self.alive}"
        )

    def to_bytes(self) -> bytes:
        """Return the content of the file."""
        return (json.dumps(dataclasses.asdict(self), indent=2) + "\n").encode()


@contextlib.contextmanager
def hold(folder: epath.Path, name: str) -> Iterator["Held"]:
    """Hold a folder inside the block, for all processes of a job. All of them must call it.

    The folder is created. If it is new and still empty at the end, it is removed again.

    Args:
      folder: the folder.
      name: the flag that names it, with its value, such as "--workdir=DIR", for messages.

    Raises:
      UserError: another run holds the folder, or it can't be created or written to.
    """
    held = Held(folder, name)
    with signals.before_end(held.release):
        run_on_first(held.acquire)
        try:
            yield held
        finally:
            held.release()


class Held:
    """The hold of this job on a folder; use `hold`. Only the first process acts."""

    def __init__(self, folder: epath.Path, name: str) -> None:
        self._folder, self._path, self._name = folder, folder / HOLDER, name
        self._me = _this_process()
        # Folders that don't exist yet, and the times of the folder if it does.
        self._new: list[epath.Path] = []
        self._times: os.stat_result | None = None
        self._taken_by: str | None = None
        self._ended, self._renewing = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._show_life, daemon=True)

    def acquire(self) -> None:
        """Take the folder; wait while it isn't certain that its holder is dead.

        Raises:
          UserError: another run holds the folder.
        """
        if not _in_bucket(self._folder):
            parents = [self._folder, *self._folder.parents]
            self._new = [path for path in parents if not path.exists()]
            self._times = None if self._new else os.stat(self._folder)
        make_folder(self._folder, self._name)
        try:
            self._take()
        except (OSError, WriteError) as error:
            self._leave_as_it_was()
            raise UserError(
                f"{self._name} can't be written to: {error}; name another folder"
            ) from error
        self._thread.start()

    def check(self, *, read: bool = True) -> None:
        """Raise a TrainingError if another run has taken the folder over.

        Args:
          read: read the file, instead of relying on the last sign of life.
        """
        if jax.process_index() == 0 and read and self._taken_by is None:
            self._renew()
        if self._taken_by:
            raise TrainingError(
                f"{self._name} was taken over by {self._taken_by}, because this run gave no sign "
                f"of life for {SILENT_SECONDS:.0f} s: it stops here and writes no checkpoint"
            )

    def release(self) -> None:
        """Give the folder free, if it is still held."""
        if self._thread.ident is None:
            return
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            holder = _parse(_read(self._path))
            if holder and holder.token == self._me.token:
                self._path.unlink(missing_ok=True)
        self._leave_as_it_was()

    def _leave_as_it_was(self) -> None:
        """Remove new folders that are empty; an old empty one gets its times of change back."""
        with contextlib.suppress(OSError, ValueError):  # epath's error for files inside
            for folder in self._new:
                folder.rmdir()
            if self._times and not any(self._folder.iterdir()):
                os.utime(self._folder, ns=(self._times.st_atime_ns, self._times.st_mtime_ns))

    def _take(self) -> None:
        while not self._create(self._path):
            found = self._find_dead(self._path)
            if found is None:
                continue
            content, reason = found
            claims = self._claim(content)
            if claims is None:
                continue
            try:
                if _read(self._path) == content:
                    write_bytes(self._path, self._me.to_bytes())
                    holder = _parse(content) or "a holder that can't be read"
                    say(f"{self._name} is taken over from {holder}: {reason}")
                    return
            finally:
                for claim in claims:
                    claim.unlink(missing_ok=True)

    def _claim(self, content: bytes) -> list[epath.Path] | None:
        """Become the only one that takes over from a dead holder.

        A claim is named after what it replaces. A dead claim is claimed in turn, and not removed:
        somebody else may have replaced it since it was read.

        Args:
          content: the file of the dead holder.

        Returns:
          The claims to remove after the holder's file is replaced; None if a claim is gone, so that
          the holder's file must be read again.

        Raises:
          UserError: another run that lives is taking over.
        """
        claims, name = [], HOLDER
        while True:
            name = f"{HOLDER}.{hashlib.sha256(name.encode() + content).hexdigest()[:16]}"
            claims.append(self._path.with_name(name))
            if self._create(claims[-1]):
                return claims
            found = self._find_dead(claims[-1])
            if found is None:
                return None
            content, _ = found

    def _create(self, path: epath.Path) -> bool:
        """Create a file that names this process; return False if it exists."""
        content = self._me.to_bytes()
        if path.exists():
            return False
        if _in_bucket(path):
            path.write_bytes(content)
            time.sleep(SETTLE_SECONDS)
            return _read(path) == content
        own = path.with_name(f"{path.name}.{self._me.token}")
        try:
            own.write_bytes(content)
            os.link(own, path)
            return True
        except FileExistsError:
            # Over NFS, a repeated request may find the link that the first one made.
            return os.stat(own).st_nlink == 2
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            return _create_exclusively(path, content)
        finally:
            own.unlink(missing_ok=True)

    def _find_dead(self, path: epath.Path) -> tuple[bytes, str] | None:
        """Return the content of the file of a dead holder, and how it is known; None if it is gone.

        Raises:
          UserError: the holder is alive.
        """
        content = _read(path)
        if content is None:
            return None
        holder = _parse(content)
        if holder and holder.machine and holder.machine == self._me.machine:
            if _is_running(holder):
                raise self._refusal(holder)
            return content, "that process has ended"
        age = SILENT_SECONDS if holder is None else _seconds_since(holder.alive)
        seconds = max(SILENT_SECONDS - age, WATCH_SECONDS)
        say(
            f"{self._name} is held by {holder or 'a run whose file can not be read'}: waiting up "
            f"to {seconds:.0f} s for a sign of life; without one, it is taken over"
        )
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(min(1.0, seconds / 10))
            now = _read(path)
            if now is None:
                return None
            if now != content:
                raise self._refusal(_parse(now) or holder)
        return content, f"it gave no sign of life for {seconds:.0f} s"

    def _refusal(self, holder: Holder | None) -> UserError:
        return UserError(
            f"{self._name} is in use by {holder or 'another run'}: stop that run, or wait until "
            f"it ends, or name another folder; if this is a copy of that run's folder, remove "
            f"{HOLDER} from it"
        )

    def _show_life(self) -> None:
        while not self._ended.wait(BEAT_SECONDS) and self._taken_by is None:
            self._renew()

    def _renew(self) -> None:
        """Give a sign of life, unless another run has taken the folder over."""
        # Storage may be away for a while.
        with self._renewing, contextlib.suppress(OSError, WriteError):
            content = _read(self._path)
            holder = _parse(content)
            if holder and holder.token != self._me.token:
                self._taken_by = str(holder)
            elif content is not None or self._create(self._path):
                now = dataclasses.replace(self._me, alive=_now())
                write_bytes(self._path, now.to_bytes())


def _this_process() -> Holder:
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # e.g. a container without an entry for the user
        user = "unknown"
    now, pid = _now(), os.getpid()
    return Holder(
        token=uuid.uuid4().hex,
        host=platform.node(),
        user=user,
        pid=pid,
        machine=_machine(),
        process_start=_process_start(pid) or "",
        since=now,
        alive=now,
    )


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _seconds_since(moment: str) -> float:
    passed = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(moment)
    return max(passed.total_seconds(), 0.0)


def _read(path: epath.Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        if not _in_bucket(path) and os.path.islink(path):
            raise UserError(f"{path} is a link to a file that isn't there: remove it") from None
        return None


def _parse(content: bytes | None) -> Holder | None:
    """Return the holder that a file names; None if it can't be read."""
    try:
        holder = Holder(**json.loads(content or b""))
        _seconds_since(holder.alive)
        int(holder.pid)
    except (ValueError, TypeError, OverflowError, RecursionError):
        return None
    return holder


def _in_bucket(path: epath.Path) -> bool:
    return "://" in str(path)


def _create_exclusively(path: epath.Path, content: bytes) -> bool:
    try:
        with open(path, "xb") as file:
            file.write(content)
    except FileExistsError:
        return False
    return True


def _machine() -> str:
    """Return what changes with a restart of the machine, and with a container; "" if unknown."""
    try:
        if sys.platform == "darwin":
            return _output("sysctl", "-n", "kern.bootsessionuuid")
        boot = epath.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except (OSError, subprocess.SubprocessError):
        return ""


def _is_running(holder: Holder) -> bool:
    start = _process_start(holder.pid)
    if start is not None:
        return start == holder.process_start
    try:
        os.kill(holder.pid, 0)
    except PermissionError:
        return True  # The system hides processes of other users.
    except (OSError, OverflowError):
        return False
    return sys.platform != "linux"


def _process_start(pid: int) -> str | None:
    """Return when a process started; None if it has ended, or the system doesn't say it."""
    try:
        if sys.platform != "linux":
            return _output("ps", "-o", "lstart=", "-p", str(pid)) or None
        # The name of the program, in parentheses, may have spaces.
        fields = epath.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, subprocess.SubprocessError):
        return None
    return None if fields[0] in "ZX" else fields[19]


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
