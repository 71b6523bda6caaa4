//! What a parser child takes from itself. Each layer is best effort: a kernel or container that refuses one leaves the others,
//! and [`super::SandboxReport`] tells what holds.

use std::path::PathBuf;

use super::wire::Request;

/// Files that may be open at once: three pipes, fonts.
const OPEN_FILES: u64 = 64;

/// The layers that closed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Closed {
    pub landlock: bool,
    pub seccomp: bool,
}

/// Closes every file but the three standard ones and stops listening to the terminal and to service managers: the parent ends
/// its children itself, after it has waited for them.
pub(super) fn cut_off() {
    #[cfg(target_os = "linux")]
    // SAFETY: nothing in this process has opened a file yet; numbers from 3 on belong to whoever started it.
    unsafe {
        libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0);
    }
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGPIPE] {
        // SAFETY: ignoring a signal installs no handler.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Sets the limits of resources.
pub(super) fn limit(request: &Request) {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: plain settings of the allocator and of the process. Each thread's own arena would reserve 64 MiB of the limit.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
    set(libc::RLIMIT_AS, request.memory, request.memory);
    // The soft limit's signal says what happened; the hard one is for who ignores it.
    set(libc::RLIMIT_CPU, request.cpu_seconds, request.cpu_seconds + 1);
    set(libc::RLIMIT_FSIZE, 0, 0);
    set(libc::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES);
    set(libc::RLIMIT_CORE, 0, 0);
    #[cfg(target_os = "linux")]
    // SAFETY: plain settings of this process.
    unsafe {
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    }
}

#[cfg(target_env = "gnu")]
type Resource = libc::__rlimit_resource_t;
#[cfg(not(target_env = "gnu"))]
type Resource = libc::c_int;

fn set(resource: Resource, soft: u64, hard: u64) {
    // A limit that is already lower stays: only root could raise it, and nobody should.
    let mut now = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls get a valid structure.
    unsafe {
        libc::getrlimit(resource, &raw mut now);
        let new = libc::rlimit { rlim_cur: soft.min(now.rlim_max), rlim_max: hard.min(now.rlim_max) };
        libc::setrlimit(resource, &raw const new);
    }
}

/// Closes the file system but for folders of fonts, and the network. Threads started later are closed too; those that run
/// already are not.
#[cfg(target_os = "linux")]
pub(super) fn close(fonts: &[PathBuf]) -> Closed {
    let landlock = linux::landlock(fonts).unwrap_or(false);
    // Without landlock nothing would guard the font folders' neighbours: then no file opens at all.
    let seccomp = linux::seccomp(!landlock).is_ok();
    Closed { landlock, seccomp }
}

/// Other systems have neither landlock nor seccomp.
#[cfg(not(target_os = "linux"))]
pub(super) fn close(_fonts: &[PathBuf]) -> Closed {
    Closed::default()
}

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    use landlock::{
        ABI, Access as _, AccessFs, AccessNet, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetError,
        RulesetStatus, Scope, path_beneath_rules,
    };
    use seccompiler::{
        BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    };

    /// Asks for all that the newest known kernel can deny and takes what this one gives; whether files are guarded.
    pub fn landlock(fonts: &[PathBuf]) -> Result<bool, RulesetError> {
        let newest = ABI::V6;
        let status = Ruleset::default()
            .handle_access(AccessFs::from_all(newest))?
            .handle_access(AccessNet::from_all(newest))?
            .scope(Scope::from_all(newest))?
            .create()?
            .add_rules(path_beneath_rules(fonts, AccessFs::ReadFile | AccessFs::ReadDir))?
            .restrict_self()?;
        Ok(status.ruleset != RulesetStatus::NotEnforced)
    }

    /// A list of what is refused with an error, not a list of what is allowed: readers and their allocators differ in what they
    /// call, and a call that fails is an error they know, where a signal would be a crash.
    pub fn seccomp(files_too: bool) -> Result<(), Error> {
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = REFUSED.iter().map(|&call| (call, Vec::new())).collect();
        if files_too {
            rules.extend(OPENING.iter().map(|&call| (call, Vec::new())));
        }
        rules.insert(libc::SYS_clone, vec![only_where(0, SeccompCmpOp::MaskedEq(THREAD), 0)?]);
        // SAFETY: always succeeds.
        let own = unsafe { libc::getpid() };
        rules.insert(libc::SYS_tgkill, vec![only_where(0, SeccompCmpOp::Ne, u64::from(own.unsigned_abs()))?]);
        rules.insert(libc::SYS_prlimit64, vec![only_where(2, SeccompCmpOp::Ne, 0)?]);
        apply(rules, libc::EPERM)?;
        // Its flags are in memory, where a filter cannot look; told that it does not exist, libc asks for `clone` instead.
        apply(BTreeMap::from([(libc::SYS_clone3, Vec::new())]), libc::ENOSYS)
    }

    const THREAD: u64 = libc::CLONE_THREAD.unsigned_abs() as u64;

    fn only_where(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, Error> {
        let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Qword, operator, value);
        condition.and_then(|condition| SeccompRule::new(vec![condition])).map_err(Error::Backend)
    }

    fn apply(rules: BTreeMap<i64, Vec<SeccompRule>>, error: i32) -> Result<(), Error> {
        let architecture = std::env::consts::ARCH.try_into().map_err(Error::Backend)?;
        let refuse = SeccompAction::Errno(error.unsigned_abs());
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, architecture).map_err(Error::Backend)?;
        let program: BpfProgram = filter.try_into().map_err(Error::Backend)?;
        seccompiler::apply_filter(&program)
    }

    /// Ways to a file's content; landlock guards them where it can.
    const OPENING: &[i64] = &[
        libc::SYS_openat,
        libc::SYS_openat2,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_open,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_creat,
    ];

    /// What no reader needs.
    const REFUSED: &[i64] = &[
        // The network, and sockets of any kind.
        libc::SYS_socket,
        libc::SYS_socketpair,
        libc::SYS_connect,
        libc::SYS_bind,
        libc::SYS_listen,
        libc::SYS_accept,
        libc::SYS_accept4,
        libc::SYS_sendto,
        libc::SYS_sendmsg,
        libc::SYS_sendmmsg,
        libc::SYS_recvfrom,
        libc::SYS_recvmsg,
        libc::SYS_recvmmsg,
        // Other processes.
        libc::SYS_execve,
        libc::SYS_execveat,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_fork,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_vfork,
        libc::SYS_kill,
        libc::SYS_tkill,
        libc::SYS_rt_sigqueueinfo,
        libc::SYS_rt_tgsigqueueinfo,
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_process_madvise,
        libc::SYS_kcmp,
        libc::SYS_pidfd_open,
        libc::SYS_pidfd_getfd,
        libc::SYS_pidfd_send_signal,
        // Changing files and their names.
        libc::SYS_open_by_handle_at,
        libc::SYS_name_to_handle_at,
        libc::SYS_memfd_create,
        libc::SYS_truncate,
        libc::SYS_ftruncate,
        libc::SYS_unlinkat,
        libc::SYS_renameat,
        libc::SYS_renameat2,
        libc::SYS_linkat,
        libc::SYS_symlinkat,
        libc::SYS_mkdirat,
        libc::SYS_mknodat,
        libc::SYS_fchmod,
        libc::SYS_fchmodat,
        libc::SYS_fchown,
        libc::SYS_fchownat,
        libc::SYS_utimensat,
        libc::SYS_setxattr,
        libc::SYS_lsetxattr,
        libc::SYS_fsetxattr,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_unlink,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_rename,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_link,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_symlink,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_mkdir,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_rmdir,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_mknod,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_chmod,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_chown,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_lchown,
        // The system and its seldom tested corners.
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_userfaultfd,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_keyctl,
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_chroot,
        libc::SYS_fsopen,
        libc::SYS_fsmount,
        libc::SYS_move_mount,
        libc::SYS_open_tree,
        libc::SYS_setns,
        libc::SYS_unshare,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_delete_module,
        libc::SYS_kexec_load,
        libc::SYS_reboot,
        libc::SYS_swapon,
        libc::SYS_swapoff,
        libc::SYS_settimeofday,
        libc::SYS_clock_settime,
        libc::SYS_sethostname,
        libc::SYS_setdomainname,
        libc::SYS_personality,
        libc::SYS_acct,
        libc::SYS_quotactl,
        libc::SYS_fanotify_init,
        libc::SYS_inotify_init1,
        libc::SYS_shmget,
        libc::SYS_shmat,
        libc::SYS_msgget,
        libc::SYS_semget,
        libc::SYS_mq_open,
        // Becoming somebody else, or having more.
        libc::SYS_setuid,
        libc::SYS_setgid,
        libc::SYS_setreuid,
        libc::SYS_setregid,
        libc::SYS_setresuid,
        libc::SYS_setresgid,
        libc::SYS_setgroups,
        libc::SYS_setfsuid,
        libc::SYS_setfsgid,
        libc::SYS_capset,
        libc::SYS_setrlimit,
        libc::SYS_setpriority,
        libc::SYS_sched_setscheduler,
        libc::SYS_setsid,
        libc::SYS_setpgid,
    ];
}
