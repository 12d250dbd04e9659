"""Shut a process in: its own files, network, process ids and users (Linux namespaces), no privileges, hard limits.

Used by the worker between fork and the learner's code. Standard library only. Level A needs namespaces, which root
has and most Linux machines give to users; level B needs root, and makes do with a user of its own for each submission
(`users.py`); level C shuts nothing in. `choose` says which of them this machine can have. To A and B, `filters.py` adds
two more locks where the machine has them.
"""

import contextlib
import ctypes
import os
import platform
import resource
import signal
import stat
import sys
import sysconfig
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from attncourse.grading import filters

LEVELS = ("auto", "A", "B", "C")
DEVICES = ("null", "zero", "urandom", "random")

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND = 1, 2, 4, 8, 32, 4096
MS_REC, MS_PRIVATE, MNT_DETACH = 16384, 1 << 18, 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
RLIMIT_MSGQUEUE = 12

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Limits:
    """What one submission may use. Bytes, seconds and counts."""

    memory: int = 3 << 30  # of one process, and of all together
    disk: int = 64 << 20
    files: int = 2000
    file: int = 16 << 20
    cpu_seconds: int = 120
    processes: int = 64
    open_files: int = 128


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def choose(level: str = "auto") -> str:
    """The level to grade at: "auto" takes A where it can be had, else B. RuntimeError says why not, and what to do."""
    if level == "C":
        return level
    reason = needs = ""
    if level in ("auto", "A"):
        if (reason := available()) is None:
            return "A"
        needs = "Run as root, allow user namespaces (Ubuntu: sysctl kernel.apparmor_restrict_unprivileged_userns=0)"
    if level in ("auto", "B"):
        if (why := available_to_root()) is None:
            return "B"
        reason = f"{reason}, and {why}" if reason else why
        needs = needs or "Run as root, with Python's packages in a folder that every user may read"
    raise RuntimeError(
        f"this machine cannot isolate a learner's code: {reason}. {needs}, or, for notebooks you trust, grade with "
        "--isolation C"
    )


def available() -> str | None:
    """None when this machine can isolate at level A, else the reason why not."""
    if not sys.platform.startswith("linux"):
        return f"{platform.system()} has no Linux namespaces"
    if platform.machine() not in PIVOT_ROOT:
        return f"this processor ({platform.machine()}) is not supported"
    child = os.fork()
    if child == 0:
        try:
            enter_namespaces(65534)
            os._exit(0)
        except OSError as error:
            os._exit(error.errno or 1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 0:
        return None
    return f"namespaces are refused ({os.strerror(status) if status > 0 else 'killed'})"


def available_to_root() -> str | None:
    """None when this machine can isolate at level B, else the reason why not."""
    if not sys.platform.startswith("linux"):
        return f"{platform.system()} has no level B"
    if os.geteuid() != 0:
        return "level B needs root"
    for folder in package_folders():
        if blocker := closed_to_others(folder):
            return f"at level B every user must be able to read Python's packages, and {blocker} is closed to others"
    ready, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            drop_privileges(65534)
            os.write(theirs, b"\0")
            signal.pause()
        except OSError as error:
            os.write(theirs, bytes([error.errno or 1]))
        finally:
            os._exit(0)
    os.close(theirs)
    number = int.from_bytes(os.read(ready, 1) or b"\1", "big")
    os.close(ready)
    try:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    except OSError as error:  # no CAP_KILL: root here may not kill what it started as another user
        number = error.errno or 1
    return f"root may not change users here ({os.strerror(number)})" if number else None


def closed_to_others(path: Path) -> Path | None:
    """The folder on the way to this path, or the path itself, that users other than its owner cannot enter or read."""
    path = path.resolve()
    for folder in reversed(path.parents):
        if not folder.stat().st_mode & stat.S_IXOTH:
            return folder
    return None if path.stat().st_mode & stat.S_IROTH else path


def enter_namespaces(uid: int) -> None:
    """Leave the machine's files, network, process ids and users behind; the next fork is process 1 of a new space.

    Root stays root until `drop_privileges`; anyone else becomes `uid` of a user namespace of their own.
    """
    flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
    if os.geteuid() == 0:
        _call("unshare", flags)
        return
    outer_uid, outer_gid = os.geteuid(), os.getegid()
    _call("unshare", flags | CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {outer_uid} 1")
    Path("/proc/self/gid_map").write_text(f"{uid} {outer_gid} 1")


def package_folders() -> list[Path]:
    """Where the installed packages are."""
    return [path for path in map(Path, {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}) if path.is_dir()]


def standard_library() -> Path:
    """Where Python's own modules are."""
    return Path(sysconfig.get_path("stdlib"))


def python_folders() -> list[Path]:
    """What Python and torch may still have to read: the standard library, packages, shared libraries."""
    paths = sysconfig.get_paths()
    named = [paths["stdlib"], paths["platstdlib"], paths["purelib"], paths["platlib"], "/usr/lib", "/usr/lib64"]
    named += ["/lib", "/lib64", str(Path(sys.base_prefix) / "lib"), *filter(os.path.isabs, sys.path)]
    folders: list[Path] = []
    for folder in sorted({Path(name).resolve() for name in named if Path(name).is_dir()}):
        if not any(folder.is_relative_to(parent) for parent in folders):
            folders.append(folder)
    return folders


def links_to_python() -> dict[Path, Path]:
    """Symbolic links on the way to what Python imports, as a virtual environment may have, and where they lead."""
    links = {}
    for name in filter(None, sys.path):
        for path in (Path(name), *Path(name).parents):
            if path.is_symlink():
                links[path] = path.resolve()
    return links


def build_root(root: Path, readable: Iterable[Path], hidden: Iterable[Path], limits: Limits) -> None:
    """Make `root` a small file system of its own and move into it: `readable` read-only, /tmp to write in.

    hidden: folders in `readable` that are empty in there.
    """
    links = links_to_python()
    _mount(None, "/", None, MS_REC | MS_PRIVATE)
    _mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, f"size={limits.disk},nr_inodes={limits.files},mode=755")
    for folder in readable:
        inside = root / folder.relative_to("/")
        inside.mkdir(parents=True, exist_ok=True)
        _mount(folder, inside, None, MS_BIND | MS_REC)
        kept = os.statvfs(inside).f_flag & (MS_NOSUID | MS_NODEV | MS_NOEXEC)
        _mount(None, inside, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | kept)
    for folder in hidden:
        _mount("tmpfs", root / folder.relative_to("/"), "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV, "size=4k,mode=755")
    for device in DEVICES:
        (root / "dev").mkdir(exist_ok=True)
        (root / "dev" / device).touch()
        _mount(f"/dev/{device}", root / "dev" / device, None, MS_BIND)
    for name, target in (("lib", "usr/lib"), ("lib64", "usr/lib64")):
        if not (root / name).exists():
            (root / name).symlink_to(target)
    for link, target in links.items():
        inside = root / link.relative_to("/")
        if not inside.parent.resolve().is_relative_to(root):
            continue
        with contextlib.suppress(FileExistsError, OSError):  # in a folder that is there already, or read-only
            inside.parent.mkdir(parents=True, exist_ok=True)
            inside.symlink_to(target)
    for name in ("proc", "tmp", "old"):
        (root / name).mkdir(exist_ok=True)
    (root / "tmp").chmod(0o1777)
    with contextlib.suppress(OSError):  # a user may mount the new /proc only where an old one is seen
        _mount("/proc", root / "proc", None, MS_BIND | MS_REC)
    os.chdir(root)
    if _libc.syscall(PIVOT_ROOT[platform.machine()], b".", b"old") != 0:
        raise OSError(ctypes.get_errno(), "pivot_root")
    os.chdir("/tmp")
    _call("umount2", b"/old", MNT_DETACH)
    os.rmdir("/old")
    _mount(None, "/", None, MS_REMOUNT | MS_BIND | MS_NOSUID | MS_NODEV)


def become_first(limits: Limits, uid: int, extra: bool = True) -> dict[str, str]:
    """As process 1 of the new space: mount its /proc, drop all privileges, set the limits. No way back.

    extra: seccomp too, where the machine has it. Returns what protects what.
    """
    try:
        _mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    except OSError:  # refused inside some containers; then there is no /proc at all
        if os.path.ismount("/proc"):
            _call("umount2", b"/proc", MNT_DETACH)
    drop_privileges(uid)
    set_limits(limits)
    filtered = extra and filters.refuse_calls()
    return {
        "files": "closed (namespace)",
        "network": "closed (namespace)",
        "processes": "closed (namespace)",
        "system calls": "filtered (seccomp)" if filtered else "open",
    }


def become_user(
    limits: Limits, uid: int, home: Path, readable: Iterable[Path], hidden: Iterable[Path], extra: bool = True
) -> dict[str, str]:
    """Become a user of its own, in a folder of its own, with no privilege and with limits (level B). No way back.

    extra: seccomp, and Landlock with the files of `readable` but those `hidden`, where the machine has them. Returns
    what protects what, "open" where nothing does.
    """
    parent = os.getppid()
    devices = [Path("/dev", name) for name in DEVICES]
    open_files = list(_without(readable, set(hidden)))
    drop_privileges(uid)
    if os.getppid() != parent:
        os._exit(1)  # it ended before it could take this process with it
    set_limits(limits)
    os.umask(0o077)
    os.chdir(home)
    os.environ.update(HOME=str(home), TMPDIR=str(home))
    tempfile.tempdir = None
    locked = extra and filters.close_files(open_files, [home], devices)
    filtered = extra and filters.refuse_calls()
    return {
        "files": "closed (Landlock)" if locked else "open: what every user of the machine may read",
        "network": "closed (seccomp)" if filtered else "open",
        "processes": "closed (Landlock)" if locked else "open: the list, as every user sees it",
        "system calls": "filtered (seccomp)" if filtered else "open",
    }


def stay_open() -> dict[str, str]:
    """What protects what at level C: nothing."""
    return dict.fromkeys(("files", "network", "processes", "system calls"), "open")


def _without(folders: Iterable[Path], hidden: set[Path]) -> Iterable[Path]:
    """The folders, those that have something hidden in them replaced by what else they hold."""
    for folder in folders:
        if any(path.is_relative_to(folder) for path in hidden):
            yield from _without((entry for entry in folder.iterdir() if entry not in hidden), hidden)
        else:
            yield folder


def drop_privileges(uid: int) -> None:
    """Become the unprivileged `uid`, without groups or capabilities, and unable to gain any. Dies with its parent."""
    for capability in range(64):
        _libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    _call("capset", header, (ctypes.c_uint32 * 6)())
    _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)
    die_with_parent()


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends. Linux only; elsewhere nothing."""
    if sys.platform.startswith("linux"):
        _call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def go_first_when_memory_is_short() -> None:
    """Ask the kernel to end this process, and what it starts, before any other: never the examiner."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def set_limits(limits: Limits) -> None:
    """Hard limits on memory, time, processes and files; memory counts from what the process holds already."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 1 << 20
    for what, amount in (
        (resource.RLIMIT_AS, pages * resource.getpagesize() + limits.memory),
        (resource.RLIMIT_FSIZE, limits.file),
        (resource.RLIMIT_CPU, limits.cpu_seconds),
        (resource.RLIMIT_NPROC, limits.processes),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_CORE, 0),
        (RLIMIT_MSGQUEUE, 0),
    ):
        resource.setrlimit(what, (amount, amount))


def _mount(source: object, target: object, kind: str | None, flags: int, data: str = "") -> None:
    encode = lambda value: None if value is None else os.fsencode(str(value))  # noqa: E731
    _call("mount", encode(source), encode(target), encode(kind), ctypes.c_ulong(flags), encode(data or None))
