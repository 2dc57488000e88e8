//! How a program is run: the runtime specification's `config.json`, with what podman gives a container
//! that is asked for nothing special.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use oci_spec::runtime as oci;
use oci_spec::runtime::Capability as Cap;
use serde::{Deserialize, Serialize};

use super::RuntimeError;
use super::container::{COMMAND, RESTRICT};
use super::seccomp;
use super::users::Identity;

/// What programs are found in when nothing is said.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How a program is run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Setup {
    /// The program and its arguments.
    pub args: Vec<String>,
    /// Environment, each `NAME=value`.
    pub env: Vec<String>,
    /// Directory to run in; it is made if it is not there.
    pub cwd: String,
    /// Who it is.
    pub identity: Identity,
    /// Name of the machine.
    pub hostname: String,
    /// The network it sees.
    pub network: Network,
    /// What is mounted besides the usual.
    pub mounts: Vec<Mount>,
}

/// The network that a program sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// That of the caller
    #[default]
    Host,
    /// None but the loopback device
    None,
}

/// Something that is mounted in the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Where, an absolute path in the container.
    pub target: String,
    /// What.
    pub what: MountWhat,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountWhat {
    /// A file or directory of the caller's.
    Bind {
        /// Its path.
        source: PathBuf,
        /// Whether nothing may be written to it.
        read_only: bool,
    },
    /// An empty filesystem in memory.
    Tmpfs {
        /// Its size in bytes, if it is limited.
        size: Option<u64>,
    },
}

/// What a process may do as root, as in podman.
const CAPABILITIES: [Cap; 11] = [
    Cap::Chown,
    Cap::DacOverride,
    Cap::Fowner,
    Cap::Fsetid,
    Cap::Kill,
    Cap::NetBindService,
    Cap::Setfcap,
    Cap::Setgid,
    Cap::Setpcap,
    Cap::Setuid,
    Cap::SysChroot,
];

/// The `config.json` for a root filesystem that is mounted at `root`.
///
/// # Errors
/// When a seccomp profile is installed but not understood.
pub fn spec(setup: &Setup, root: &Path) -> Result<oci::Spec, RuntimeError> {
    let mut spec = oci::Spec::default();
    let mut oci_root = oci::Root::default();
    oci_root.set_path(root.to_owned()).set_readonly(None);
    spec.set_root(Some(oci_root));
    spec.set_process(Some(process(setup)));
    spec.set_hostname(Some(setup.hostname.clone()));
    spec.set_mounts(Some(mounts(setup)));
    // In a user namespace the kernel opens no device nodes of what is mounted there.
    if crate::sys::process::is_in_initial_namespace() {
        spec.set_hooks(Some(hooks(root)));
    }
    let mut linux = oci::Linux::default();
    let mut kinds = vec![
        oci::LinuxNamespaceType::Mount,
        oci::LinuxNamespaceType::Pid,
        oci::LinuxNamespaceType::Ipc,
        oci::LinuxNamespaceType::Uts,
    ];
    if setup.network == Network::None {
        kinds.push(oci::LinuxNamespaceType::Network);
    }
    let namespace = |kind| {
        let mut namespace = oci::LinuxNamespace::default();
        namespace.set_typ(kind);
        namespace
    };
    linux.set_namespaces(Some(kinds.into_iter().map(namespace).collect()));
    linux.set_resources(None);
    linux.set_masked_paths(Some(oci::get_default_maskedpaths()));
    linux.set_readonly_paths(Some(oci::get_default_readonly_paths()));
    linux.set_seccomp(seccomp::profile(&CAPABILITIES)?);
    spec.set_linux(Some(linux));
    Ok(spec)
}

/// What the runtime runs before it changes to the root: the worker's program, which is the first of its PID
/// namespace.
fn hooks(root: &Path) -> oci::Hooks {
    let mut hook = oci::Hook::default();
    hook.set_path("/proc/1/exe".into())
        .set_args(Some(vec!["lamina".to_owned(), COMMAND.to_owned()]))
        .set_env(Some(vec![format!("{RESTRICT}={}", root.display())]));
    let mut hooks = oci::Hooks::default();
    hooks.set_create_container(Some(vec![hook]));
    hooks
}

fn process(setup: &Setup) -> oci::Process {
    let mut user = oci::User::default();
    user.set_uid(setup.identity.uid).set_gid(setup.identity.gid);
    user.set_additional_gids(Some(setup.identity.groups.clone()));
    let all: HashSet<Cap> = CAPABILITIES.into_iter().collect();
    // Whoever is not root begins without any, and gets them by programs that are set-user-ID.
    let own = if setup.identity.uid == 0 {
        all.clone()
    } else {
        HashSet::new()
    };
    let mut capabilities = oci::LinuxCapabilities::default();
    capabilities
        .set_bounding(Some(all))
        .set_effective(Some(own.clone()))
        .set_permitted(Some(own))
        .set_inheritable(None)
        .set_ambient(None);
    let mut process = oci::Process::default();
    process
        .set_terminal(Some(false))
        .set_user(user)
        .set_args(Some(setup.args.clone()))
        .set_env(Some(setup.env.clone()))
        .set_cwd(setup.cwd.clone().into())
        .set_capabilities(Some(capabilities))
        .set_rlimits(None)
        .set_no_new_privileges(Some(false));
    process
}

/// Mounts that every container has: where, of what kind, and how.
const USUAL: [(&str, &str, &[&str]); 5] = [
    ("/proc", "proc", &["nosuid", "noexec", "nodev"]),
    (
        "/dev",
        "tmpfs",
        &["nosuid", "strictatime", "mode=755", "size=65536k"],
    ),
    (
        "/dev/pts",
        "devpts",
        &[
            "nosuid",
            "noexec",
            "newinstance",
            "ptmxmode=0666",
            "mode=0620",
            "gid=5",
        ],
    ),
    (
        "/dev/shm",
        "tmpfs",
        &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
    ),
    ("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
];

fn mounts(setup: &Setup) -> Vec<oci::Mount> {
    let usual = USUAL.iter();
    let mut mounts: Vec<_> = usual
        .map(|(target, kind, options)| mount(target, kind, Path::new(kind), options))
        .collect();
    // A user namespace may mount this only if the network is its own.
    let own_sysfs =
        setup.network == Network::None || crate::sys::process::is_in_initial_namespace();
    let options = ["nosuid", "noexec", "nodev", "ro", "rbind", "rprivate"];
    mounts.push(if own_sysfs {
        let options = options.get(..4).unwrap_or_default();
        mount("/sys", "sysfs", Path::new("sysfs"), options)
    } else {
        mount("/sys", "bind", Path::new("/sys"), &options)
    });
    mounts.extend(setup.mounts.iter().map(own_mount));
    mounts
}

/// Something that is mounted besides the usual.
fn own_mount(wanted: &Mount) -> oci::Mount {
    match &wanted.what {
        MountWhat::Bind { source, read_only } => {
            let access = if *read_only { "ro" } else { "rw" };
            mount(
                &wanted.target,
                "bind",
                source,
                &["rbind", "rprivate", "nosuid", "nodev", access],
            )
        }
        MountWhat::Tmpfs { size } => {
            let size = size.map(|size| format!("size={size}"));
            let mut options = vec!["nosuid", "nodev", "mode=1777"];
            options.extend(size.as_deref());
            mount(&wanted.target, "tmpfs", Path::new("tmpfs"), &options)
        }
    }
}

fn mount(target: &str, kind: &str, source: &Path, options: &[&str]) -> oci::Mount {
    let options = options.iter().map(|option| (*option).to_owned());
    let mut mount = oci::Mount::default();
    mount
        .set_destination(target.into())
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(source.to_owned()))
        .set_options(Some(options.collect()));
    mount
}

/// The files that tell a program how to use the network, as the caller has them.
pub fn network_files() -> Vec<Mount> {
    let present = |path: &&&str| Path::new(path).is_file();
    let mount = |path: &str| Mount {
        target: path.to_owned(),
        what: MountWhat::Bind {
            source: path.into(),
            read_only: true,
        },
    };
    ["/etc/hosts", "/etc/resolv.conf"]
        .iter()
        .filter(present)
        .map(|path| mount(path))
        .collect()
}
