"""A user of its own for each submission (level B, and level A as root): lend it, watch it, and wipe out what it leaves.

Everything here is done by root. A user is a number without a name, lent under a lock, so that two runs on one machine
never share one; a lock file that is not empty tells of a run that was killed, and what to clean after it.
"""

import contextlib
import ctypes
import fcntl
import itertools
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

UIDS = range(60_706, 61_184)  # Linux distributions and systemd give these to nobody
WRITABLE = ("/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue", "/run/lock", "/var/crash")  # by every user, as a rule
SHARED_MEMORY = {"shm": "shmctl", "msg": "msgctl", "sem": "semctl"}  # System V: the call that removes each

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass
class User:
    """A user lent to one submission. home: its folder, empty, its own, closed to others. left: what `end` removed."""

    uid: int
    home: Path
    lock: int
    left: str = ""

    def end(self, strays: int = 0) -> None:
        """Kill all its processes, remove all its files, and give the user back. RuntimeError where that fails.

        strays: how many of the processes it was not to have, as `strays` counts them.
        """
        self.left = _wipe(self.uid, self.home, strays)
        os.truncate(self.lock, 0)
        os.close(self.lock)


def _lock_folder() -> Path:
    """Root's folder of locks, the same for all runs on this machine."""
    folder = Path("/run" if os.access("/run", os.W_OK) else "/var/tmp") / "attncourse-users"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != 0 or found.st_mode & 0o022:
        raise RuntimeError(f"{folder} is not root's own folder: remove it")
    return folder


def lend(homes: Path, start: int = 0) -> User:
    """A user that no other run has, from number `start` of the row up, with an empty home in the folder `homes`."""
    folder = _lock_folder()
    for i in range(len(UIDS)):
        uid = UIDS[(start + i) % len(UIDS)]
        lock = os.open(folder / str(uid), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            continue
        if left := os.read(lock, 4096).decode():  # by a run that was killed
            _wipe(uid, Path(left))
        elif _has_name(uid) or processes_of(uid):
            os.close(lock)
            continue
        home = homes.resolve() / str(uid)
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(home).encode(), 0)
        home.mkdir(mode=0o700)
        os.chown(home, uid, uid)
        return User(uid, home, lock)
    raise RuntimeError(f"all {len(UIDS)} users for submissions are in use: is a run that hangs still there?")


def _has_name(uid: int) -> bool:
    with contextlib.suppress(KeyError):
        return bool(pwd.getpwuid(uid))
    return False


def processes_of(uid: int | None) -> dict[int, str]:
    """The processes of a user, of everyone for None, that have not ended: the state of each, as in `ps`."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError, KeyError):
                lines = Path("/proc", name, "status").read_text(errors="replace").splitlines()
                fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
                if fields["State"][0] not in "ZX" and (uid is None or str(uid) in fields["Uid"].split()):
                    found[int(name)] = fields["State"][0]
    return found


def strays(uid: int, parent: int) -> int:
    """How many processes a user has beside the one that `parent` started."""
    count = 0
    for pid in processes_of(uid):
        with contextlib.suppress(OSError):
            count += f"\nPPid:\t{parent}\n" not in Path(f"/proc/{pid}/status").read_text(errors="replace")
    return count


def kill(uid: int, seconds: float = 20.0) -> None:
    """Kill every process of a user. First all are stopped: a stopped one starts no other."""
    end = time.monotonic() + seconds
    for turn in itertools.count(1):
        if not (alive := processes_of(uid)):
            return
        if time.monotonic() > end:
            raise RuntimeError(f"processes of user {uid} cannot be killed: {sorted(alive)}")
        all_stopped = all(state in "Tt" for state in alive.values())
        for pid in alive:
            _signal(pid, uid, signal.SIGKILL if all_stopped or turn % 8 == 0 else signal.SIGSTOP)
        time.sleep(0.002)


def _signal(pid: int, uid: int, number: int) -> None:
    """Signal a process if it still is this user's: the number may be another's by now."""
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        handle = os.pidfd_open(pid)
        try:
            if str(uid) in _uids(pid):
                signal.pidfd_send_signal(handle, number)
        finally:
            os.close(handle)


def _uids(pid: int) -> list[str]:
    lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    return next((line.split()[1:] for line in lines if line.startswith("Uid:")), [])


def memory(pid: int | str) -> int:
    """Bytes that a process holds and shares with no file."""
    _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGESIZE")


def files_of(uid: int, folders: Iterable[Path]) -> Iterator[Path]:
    """The files and folders of a user in these folders, and in those below that everyone may write to."""
    todo = [*folders]
    while todo:
        with contextlib.suppress(OSError), os.scandir(todo.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    found = entry.stat(follow_symlinks=False)
                    if found.st_uid == uid:
                        yield Path(entry)
                    elif stat.S_ISDIR(found.st_mode) and found.st_mode & 0o002:
                        todo.append(Path(entry))


def usage(uid: int, home: Path, pids: Iterable[int]) -> tuple[int, int]:
    """Bytes and number of the files of a user: at home, where everyone may write, and removed ones still open."""
    n_bytes = n_files = 0
    todo = [home, *files_of(uid, map(Path, WRITABLE))]
    while todo:
        with contextlib.suppress(OSError):
            path = todo.pop()
            found = path.lstat()
            n_bytes, n_files = n_bytes + found.st_blocks * 512, n_files + 1
            if stat.S_ISDIR(found.st_mode):
                todo += [Path(entry) for entry in os.scandir(path)]
    for pid in pids:
        with contextlib.suppress(OSError):  # root in a container may not look at the files that others have open
            for name in os.listdir(f"/proc/{pid}/fd"):
                found = os.stat(f"/proc/{pid}/fd/{name}")
                if stat.S_ISREG(found.st_mode) and found.st_nlink == 0:
                    n_bytes, n_files = n_bytes + found.st_blocks * 512, n_files + 1
    return n_bytes, n_files


def _wipe(uid: int, home: Path, n_strays: int = 0) -> str:
    """Kill and remove all that is of a user; what was found outside its home, in words."""
    kill(uid)
    _remove(home)
    places = {Path(name).resolve() for name in (*WRITABLE, tempfile.gettempdir())}
    n_files = 0
    for path in list(files_of(uid, places)):
        n_files += _remove(path)
    n_shared = _remove_shared_memory(uid)
    counted = (
        (n_strays, "more processes"),
        (n_files, "files outside its folder"),
        (n_shared, "shared memories"),
    )
    return ", ".join(f"{n} {what}" for n, what in counted if n > 0)


def _remove(path: Path) -> bool:
    """Remove a file or a folder, however deep; whether it was there.

    No symbolic link is followed, not even on the way there: another submission, still running, could put one in.
    """
    try:
        folder = _open_folder(path.parent)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        if not stat.S_ISDIR(os.stat(path.name, dir_fd=folder, follow_symlinks=False).st_mode):
            os.unlink(path.name, dir_fd=folder)
            return True
        try:
            shutil.rmtree(path.name, dir_fd=folder)
        except (OSError, RecursionError):
            command, place = ["rm", "-rf", "--one-file-system", "--", f"./{path.name}"], f"/proc/self/fd/{folder}"
            subprocess.run(command, cwd=place, pass_fds=[folder], check=False, capture_output=True)
            with contextlib.suppress(FileNotFoundError):
                os.stat(path.name, dir_fd=folder, follow_symlinks=False)
                raise RuntimeError(f"{path}, which a submission made, cannot be removed") from None
        return True
    except FileNotFoundError:
        return False
    finally:
        os.close(folder)


def _open_folder(path: Path) -> int:
    """A handle of a folder. NotADirectoryError where a part of its path is a symbolic link."""
    handle = os.open("/", os.O_PATH)
    for name in path.parts[1:]:
        try:
            below = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=handle)
        finally:
            os.close(handle)
        handle = below
    return handle


def _remove_shared_memory(uid: int) -> int:
    """Remove a user's System V shared memory, queues and semaphores; how many there were."""
    count = 0
    for kind, function in SHARED_MEMORY.items():
        with contextlib.suppress(OSError):
            header, *rows = Path("/proc/sysvipc", kind).read_text().splitlines()
            names = header.split()
            for row in rows:
                fields = dict(zip(names, row.split(), strict=False))
                if str(uid) in (fields["uid"], fields["cuid"]):
                    number = int(fields["msqid" if kind == "msg" else f"{kind}id"])
                    getattr(_libc, function)(number, 0, 0)  # IPC_RMID is 0
                    count += 1
    return count
