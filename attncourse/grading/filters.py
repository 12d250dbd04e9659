"""Two more locks on a jailed process, where the machine has them: seccomp and Landlock. Both need no privilege.

Seccomp refuses system calls that no exercise needs: sockets, tracing other processes, new namespaces, and what has
often let code out of a jail. It goes by way of libseccomp, the shared library that Debian, Ubuntu and Fedora install
with their base system: it knows the numbers of the calls on each processor. Landlock closes all files but those named.
"""

import contextlib
import ctypes
import errno
import os
import struct
from collections.abc import Iterable
from pathlib import Path

ALLOW, ERRNO = 0x7FFF0000, 0x00050000
REFUSED = (
    *("socket", "socketcall", "io_uring_setup", "io_uring_enter", "io_uring_register"),
    *("ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp", "process_madvise"),
    *("unshare", "setns", "mount", "umount2", "pivot_root", "chroot", "fsopen", "fsconfig", "fsmount", "fspick"),
    *("move_mount", "open_tree", "mount_setattr", "swapon", "swapoff", "quotactl", "name_to_handle_at"),
    *("open_by_handle_at", "bpf", "perf_event_open", "userfaultfd", "keyctl", "add_key", "request_key"),
    *("shmget", "shmat", "shmctl", "msgget", "msgctl", "semget", "semctl", "mq_open", "memfd_create", "memfd_secret"),
    *("init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "reboot", "acct", "syslog"),
    *("settimeofday", "clock_settime", "adjtimex", "clock_adjtime", "personality", "vhangup", "lookup_dcookie"),
    *("fanotify_init", "inotify_init", "inotify_init1", "iopl", "ioperm", "modify_ldt"),
)
NEW_NAMESPACE = (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)  # clone flags
MASKED_EQUAL = 7

CREATE, ADD_RULE, RESTRICT = 444, 445, 446  # Landlock's system calls, the same on every processor
EXECUTE, WRITE, READ, LIST, TRUNCATE, IOCTL = 1, 2, 4, 8, 1 << 14, 1 << 15
RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}  # by version, all that it knows
OF_A_FILE = EXECUTE | WRITE | READ | TRUNCATE | IOCTL

_libc = ctypes.CDLL(None, use_errno=True)


class _Compare(ctypes.Structure):
    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("mask", ctypes.c_uint64), ("value", ctypes.c_uint64))


def _load_library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return None
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = (ctypes.c_uint32,)
    library.seccomp_rule_add_array.argtypes = (
        *(ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint),
        ctypes.POINTER(_Compare),
    )
    library.seccomp_load.argtypes = library.seccomp_release.argtypes = (ctypes.c_void_p,)
    return library


_library = _load_library()  # before any jail is closed


def refuse_calls(names: Iterable[str] = REFUSED) -> bool:
    """Have the kernel refuse these system calls, to this process and all that it starts. False where it cannot be.

    They fail with EPERM. So does a clone that would make a namespace; clone3, whose flags cannot be seen, fails with
    ENOSYS, upon which the C library uses clone. Calls by way of another processor's table end the process.
    """
    if _library is None or not (context := _library.seccomp_init(ALLOW)):
        return False
    failed = 0

    def refuse(name: str, error: int, *compare: _Compare) -> None:
        nonlocal failed
        number = _library.seccomp_syscall_resolve_name(name.encode())
        if number != -1:  # -1: this version of the library has not heard of it
            rules = (_Compare * len(compare))(*compare) if compare else None
            failed |= _library.seccomp_rule_add_array(context, ERRNO | error, number, len(compare), rules)

    for name in names:
        refuse(name, errno.EPERM)
    for flag in NEW_NAMESPACE:
        refuse("clone", errno.EPERM, _Compare(0, MASKED_EQUAL, flag, flag))
    refuse("clone3", errno.ENOSYS)
    failed |= _library.seccomp_load(context)
    _library.seccomp_release(context)
    return failed == 0


def landlock_version() -> int:
    """Of the kernel's Landlock; 0 where it has none."""
    return max(0, _libc.syscall(CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(1)))


def close_files(read: Iterable[Path], write: Iterable[Path], devices: Iterable[Path]) -> bool:
    """Have the kernel refuse all files but these folders and devices. False where it cannot be.

    Needs no_new_privs. What is open already stays open.
    """
    if not (version := landlock_version()):
        return False
    handled = RIGHTS[max(known for known in RIGHTS if known <= version)]
    attributes = ctypes.create_string_buffer(struct.pack("=Q", handled), 8)
    ruleset = _libc.syscall(CREATE, attributes, ctypes.c_size_t(8), ctypes.c_uint32(0))
    if ruleset < 0:
        return False
    allowed = [(path, READ | LIST | EXECUTE) for path in read]
    allowed += [(path, handled) for path in write] + [(path, READ | WRITE | IOCTL) for path in devices]
    try:
        for path, rights in allowed:
            with contextlib.suppress(FileNotFoundError):
                below = os.open(path, os.O_PATH | os.O_CLOEXEC)
                rights &= handled if path.is_dir() else handled & OF_A_FILE
                rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, below), 12)
                added = _libc.syscall(ADD_RULE, ruleset, ctypes.c_int(1), rule, ctypes.c_uint32(0))
                os.close(below)
                if added != 0:
                    return False
        return _libc.syscall(RESTRICT, ruleset, ctypes.c_uint32(0)) == 0
    finally:
        os.close(ruleset)
