"""Shut a process in: its own files, network, process ids and users (Linux namespaces), no privileges, hard limits.

Used by the worker between fork and the learner's code. Standard library only. Level A needs namespaces, which root
has and most Linux machines give to users; `available()` says whether this one does.
"""

import contextlib
import ctypes
import os
import platform
import resource
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND = 1, 2, 4, 8, 32, 4096
MS_REC, MS_PRIVATE, MNT_DETACH = 16384, 1 << 18, 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
SIGKILL = 9

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Limits:
    """What one submission may use. Bytes, seconds and counts."""

    memory: int = 3 << 30
    disk: int = 64 << 20
    file: int = 16 << 20
    cpu_seconds: int = 120
    processes: int = 64
    open_files: int = 128


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


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


def python_folders() -> list[Path]:
    """What Python and torch may still have to read: the standard library, packages, shared libraries."""
    paths = sysconfig.get_paths()
    named = [paths["stdlib"], paths["platstdlib"], paths["purelib"], paths["platlib"], "/usr/lib", "/usr/lib64"]
    named += ["/lib", "/lib64", str(Path(sys.base_prefix) / "lib")]
    folders: list[Path] = []
    for folder in sorted({Path(name).resolve() for name in named if Path(name).is_dir()}):
        if not any(folder.is_relative_to(parent) for parent in folders):
            folders.append(folder)
    return folders


def build_root(root: Path, readable: Iterable[Path], limits: Limits) -> None:
    """Make `root` a small file system of its own and move into it: `readable` read-only, /tmp to write in."""
    _mount(None, "/", None, MS_REC | MS_PRIVATE)
    _mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, f"size={limits.disk},nr_inodes=2000,mode=755")
    for folder in readable:
        inside = root / folder.relative_to("/")
        inside.mkdir(parents=True, exist_ok=True)
        _mount(folder, inside, None, MS_BIND | MS_REC)
        kept = os.statvfs(inside).f_flag & (MS_NOSUID | MS_NODEV | MS_NOEXEC)
        _mount(None, inside, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | kept)
    for device in ("null", "zero", "urandom", "random"):
        (root / "dev").mkdir(exist_ok=True)
        (root / "dev" / device).touch()
        _mount(f"/dev/{device}", root / "dev" / device, None, MS_BIND)
    for name, target in (("lib", "usr/lib"), ("lib64", "usr/lib64")):
        if not (root / name).exists():
            (root / name).symlink_to(target)
    for name in ("proc", "tmp", "old"):
        (root / name).mkdir(exist_ok=True)
    (root / "tmp").chmod(0o1777)
    os.chdir(root)
    if _libc.syscall(PIVOT_ROOT[platform.machine()], b".", b"old") != 0:
        raise OSError(ctypes.get_errno(), "pivot_root")
    os.chdir("/tmp")
    _call("umount2", b"/old", MNT_DETACH)
    os.rmdir("/old")
    _mount(None, "/", None, MS_REMOUNT | MS_BIND | MS_NOSUID | MS_NODEV)


def become_first(limits: Limits, uid: int) -> None:
    """As process 1 of the new space: mount its /proc, drop all privileges, set the limits. No way back."""
    with contextlib.suppress(OSError):  # refused inside some containers; then there is no /proc at all
        _mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    drop_privileges(uid)
    set_limits(limits)


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
    """Ask the kernel to kill this process when its parent ends."""
    _call("prctl", PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)


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
    ):
        resource.setrlimit(what, (amount, amount))


def _mount(source: object, target: object, kind: str | None, flags: int, data: str = "") -> None:
    encode = lambda value: None if value is None else os.fsencode(str(value))  # noqa: E731
    _call("mount", encode(source), encode(target), encode(kind), ctypes.c_ulong(flags), encode(data or None))
