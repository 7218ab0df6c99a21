"""Which system calls a boundary may make, by name; :mod:`holdfast.sandbox.seccomp` makes programs of it."""

from __future__ import annotations


def _names(text: str) -> frozenset[str]:
    return frozenset(word for line in text.splitlines() for word in line.partition("#")[0].split())


ALLOWED = _names("""
    # memory
    brk madvise membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap mprotect mremap mseal msync
    munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect remap_file_pages map_shadow_stack get_mempolicy
    # processes, threads, scheduling
    alarm arch_prctl capget capset execve execveat exit exit_group fork futex futex_requeue futex_wait futex_waitv
    futex_wake get_robust_list get_thread_area getcpu getitimer getpgid getpgrp getpid getppid getpriority getrlimit
    getrusage getsid gettid ioprio_get kill pause pidfd_open pidfd_send_signal prctl prlimit64 restart_syscall rseq
    sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler
    sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp
    set_robust_list set_thread_area set_tid_address setitimer setpgid setpriority setrlimit setsid sysinfo tgkill
    times tkill uname vfork wait4 waitid landlock_add_rule landlock_create_ruleset landlock_restrict_self
    # users: without capabilities these only give up what there is
    getegid geteuid getgid getgroups getresgid getresuid getuid setfsgid setfsuid setgid setgroups setregid setresgid
    setresuid setreuid setuid
    # signals
    rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
    rt_tgsigqueueinfo sigaltstack signalfd signalfd4
    # files
    access cachestat chdir chown close close_range copy_file_range dup dup2 dup3 faccessat faccessat2 fadvise64
    fallocate fchdir fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fremovexattr fsetxattr fstat fstatfs
    fsync ftruncate futimesat getcwd getdents getdents64 getxattr inotify_add_watch inotify_init inotify_init1
    inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit lchown lgetxattr link linkat
    listxattr llistxattr lremovexattr lseek lsetxattr lstat mkdir mkdirat newfstatat pread64 preadv preadv2 pwrite64
    pwritev pwritev2 read readahead readlink readlinkat readv removexattr rename renameat renameat2 rmdir sendfile
    setxattr splice stat statfs statx symlink symlinkat sync sync_file_range syncfs tee truncate umask unlink
    unlinkat utime utimensat utimes write writev
    # waiting, pipes, clocks
    clock_getres clock_gettime clock_nanosleep epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2
    epoll_wait eventfd eventfd2 getrandom gettimeofday nanosleep pipe pipe2 poll ppoll pselect6 select time
    timer_create timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime
    timerfd_settime
    # sockets (which families is decided by argument), System V and POSIX IPC of the boundary's own namespace
    accept accept4 bind connect getpeername getsockname getsockopt listen mq_getsetattr mq_notify mq_open
    mq_timedreceive mq_timedsend mq_unlink msgctl msgget msgrcv msgsnd recvfrom recvmmsg recvmsg semctl semget semop
    semtimedop sendmmsg sendmsg sendto setsockopt shmat shmctl shmdt shmget shutdown
""")
"""Allowed with any arguments."""

DENIED = _names("""
    acct add_key adjtimex bpf chroot clock_adjtime clock_settime delete_module fanotify_init fanotify_mark
    finit_module fsconfig fsmount fsopen fspick init_module io_uring_enter io_uring_register io_uring_setup ioperm
    iopl ioprio_set kcmp kexec_file_load kexec_load keyctl lookup_dcookie mbind migrate_pages modify_ldt mount
    mount_setattr move_mount move_pages name_to_handle_at nfsservctl open_by_handle_at open_tree perf_event_open
    pidfd_getfd pivot_root process_madvise process_mrelease process_vm_readv process_vm_writev ptrace quotactl
    quotactl_fd reboot request_key set_mempolicy set_mempolicy_home_node setdomainname sethostname setns settimeofday
    swapoff swapon sysfs syslog umount2 unshare uselib userfaultfd ustat vhangup vmsplice
""")
"""Answer EPERM. What is on neither list answers ENOSYS; so does ``clone3``, whose flags no filter can see."""

SHARED = _names("""
    bind connect accept accept4 listen msgctl msgget msgrcv msgsnd mq_getsetattr mq_notify mq_open mq_timedreceive
    mq_timedsend mq_unlink semctl semget semop semtimedop shmat shmctl shmdt shmget socket
""")
"""Refused as well where network and IPC namespaces are the host's: what makes, names or joins something of it."""
