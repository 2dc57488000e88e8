//! Which system calls a container may make: the profile that the machine's container tools have
//! installed (`containers-common`), translated for the runtime. Without one there is no filter.

use std::fs;
use std::io;

use oci_spec::runtime as oci;
use serde::Deserialize;

use super::RuntimeError;

/// Where a profile is looked for: the administrator's, then the distribution's.
const PLACES: [&str; 2] = [
    "/etc/containers/seccomp.json",
    "/usr/share/containers/seccomp.json",
];

/// The format that the container tools share: the runtime's, with conditions.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: oci::LinuxSeccompAction,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    arch_map: Vec<ArchMap>,
    #[serde(default)]
    syscalls: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: oci::Arch,
    sub_architectures: Option<Vec<oci::Arch>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    names: Vec<String>,
    action: oci::LinuxSeccompAction,
    errno_ret: Option<u32>,
    args: Option<Vec<oci::LinuxSeccompArg>>,
    #[serde(default)]
    includes: Condition,
    #[serde(default)]
    excludes: Condition,
}

#[derive(Default, Deserialize)]
struct Condition {
    #[serde(default)]
    arches: Vec<String>,
    #[serde(default)]
    caps: Vec<String>,
}

impl Condition {
    fn has_arch(&self) -> bool {
        self.arches
            .iter()
            .any(|arch| arch == lamina_layers::store::oci::architecture())
    }

    fn has_capability(&self, capabilities: &[oci::Capability]) -> bool {
        let held = |name: &String| {
            capabilities
                .iter()
                .any(|held| *name == format!("CAP_{held}"))
        };
        self.caps.iter().any(held)
    }

    /// A least version of Linux (`minKernel`) is not looked at: what runs here has any that is asked for.
    fn is_empty(&self) -> bool {
        self.arches.is_empty() && self.caps.is_empty()
    }
}

/// The filter for a container with these capabilities; `None` if no profile is installed.
///
/// # Errors
/// When a profile is there but not understood.
pub fn profile(
    capabilities: &[oci::Capability],
) -> Result<Option<oci::LinuxSeccomp>, RuntimeError> {
    for place in PLACES {
        let failed = || RuntimeError::prepare(format!("use the seccomp profile {place}"));
        match fs::read(place) {
            Ok(text) => {
                let parsed: Profile = serde_json::from_slice(&text)
                    .map_err(|error| failed()(io::Error::other(error.to_string())))?;
                return Ok(Some(translate(parsed, capabilities)));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed()(error)),
        }
    }
    Ok(None)
}

fn translate(profile: Profile, capabilities: &[oci::Capability]) -> oci::LinuxSeccomp {
    let mut filter = oci::LinuxSeccomp::default();
    filter.set_default_action(profile.default_action);
    filter.set_default_errno_ret(profile.default_errno_ret);
    let native = native_arch();
    let own = profile
        .arch_map
        .iter()
        .find(|map| Some(map.architecture) == native);
    let architectures = own.map(|map| {
        let others = map.sub_architectures.iter().flatten().copied();
        [map.architecture].into_iter().chain(others).collect()
    });
    filter.set_architectures(architectures);
    let applies = |rule: &Rule| {
        let (with, without) = (&rule.includes, &rule.excludes);
        let excluded = without.has_arch() || without.has_capability(capabilities);
        let included = with.is_empty()
            || ((with.arches.is_empty() || with.has_arch())
                && (with.caps.is_empty() || with.has_capability(capabilities)));
        included && !excluded
    };
    let rules = profile.syscalls.into_iter().filter(applies).map(|rule| {
        let mut syscall = oci::LinuxSyscall::default();
        syscall.set_names(rule.names);
        syscall.set_action(rule.action);
        syscall.set_errno_ret(rule.errno_ret);
        syscall.set_args(rule.args.filter(|args| !args.is_empty()));
        syscall
    });
    filter.set_syscalls(Some(rules.collect()));
    filter
}

fn native_arch() -> Option<oci::Arch> {
    Some(match std::env::consts::ARCH {
        "x86_64" => oci::Arch::ScmpArchX86_64,
        "aarch64" => oci::Arch::ScmpArchAarch64,
        "arm" => oci::Arch::ScmpArchArm,
        "x86" => oci::Arch::ScmpArchX86,
        "powerpc64" => oci::Arch::ScmpArchPpc64le,
        "s390x" => oci::Arch::ScmpArchS390x,
        "riscv64" => oci::Arch::ScmpArchRiscv64,
        _ => return None,
    })
}
