//! Crashes: a daemon that is killed, and a machine that loses its power, while files are written.
//!
//! `LAMINA_CRASH_ROUNDS` says how many of each (default 10); every message has the seed, which
//! `LAMINA_CRASH_SEED` sets, though the timing of the writers is never the same.

mod load;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Signal, kill_process};

use crate::differential::rng::Rng;
use crate::support::disk::{Disk, Mounted};
use crate::support::lamina::{Lamina, Mount, wait_until};
use crate::support::listing::{pid_of, the_mount, words};
use crate::support::overlayfs::{Layers, Overlayfs, assert_same_tree};
use crate::support::sandbox::{Sandbox, mounted_type};
use crate::support::tree::{Ignore, Tree};
use crate::support::{needs_root, run};
use load::{Load, Sure};

fn number_from(variable: &str, default: u64) -> u64 {
    let text = std::env::var(variable).ok();
    text.map_or(default, |text| text.parse().expect(variable))
}

fn rounds() -> u64 {
    number_from("LAMINA_CRASH_ROUNDS", 10)
}

fn seed() -> u64 {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap();
    number_from("LAMINA_CRASH_SEED", now.subsec_nanos().into())
}

/// An upper with its work directory over one lower directory.
struct Stack {
    lamina: Lamina,
    layers: Layers,
}

impl Stack {
    fn new(lamina: &Lamina, lower: &Path, dir: &Path) -> Self {
        let layers = Layers {
            lowers: vec![lower.to_owned()],
            upper: dir.join("upper"),
            work: dir.join("work"),
        };
        for dir in [&layers.upper, &layers.work] {
            fs::create_dir_all(dir).unwrap();
        }
        Self {
            lamina: lamina.clone(),
            layers,
        }
    }

    fn mount(&self, target: &Path) -> Mount {
        self.lamina.mount(&self.layers.lamina_options(), target)
    }

    /// The other I/O mode in every other round.
    fn mount_for(&self, round: u64, target: &Path) -> Mount {
        let mut options = self.layers.lamina_options();
        let mode = if round.is_multiple_of(2) {
            "cached"
        } else {
            "passthrough"
        };
        options.extend(["--io".into(), mode.into()]);
        self.lamina.mount(&options, target)
    }

    fn mount_volatile(&self, target: &Path) -> Mount {
        let mut options = self.layers.lamina_options();
        options.push("--volatile".into());
        self.lamina.mount(&options, target)
    }

    /// The tree as Lamina has it mounted at `target`, and as kernel overlayfs shows it.
    fn assert_overlayfs_shows_the_same(self, mount: Mount) {
        let ours = Tree::read(mount.path());
        let target = mount.path().to_owned();
        mount.unmount();
        let work = self.layers.work.with_extension("overlayfs");
        fs::create_dir(&work).unwrap();
        let layers = Layers {
            work,
            ..self.layers
        };
        let theirs = Overlayfs::mount(&layers, "redirect_dir=on,index=off,metacopy=on", &target);
        assert_same_tree(ours, Tree::read(&target));
        theirs.unmount();
    }
}

/// Ends the daemon of the only mount of `sandbox` as a crash does, and takes off what is left.
fn kill(lamina: &Lamina, sandbox: &Sandbox, target: &Path) {
    let daemon = pid_of(&the_mount(lamina, sandbox));
    kill_process(daemon, Signal::KILL).unwrap();
    wait_until("the daemon to die", || {
        the_mount(lamina, sandbox)["state"] == "dead"
    });
    assert!(
        mounted_type(target).is_some(),
        "a killed daemon cannot unmount"
    );
}

#[test]
fn a_killed_daemon_leaves_whole_files_and_loses_no_answered_write() {
    needs_root!();
    let sandbox = Sandbox::new("kill9");
    let lamina = Lamina::new(&sandbox);
    let (lower, target) = (sandbox.dir("lower"), sandbox.join("mnt"));
    load::prepare(&lower);
    let before = Tree::read(&lower);
    let seed = seed();
    let mut rng = Rng::new(seed);
    let mut answers = 0;
    for round in 0..rounds() {
        let dir = sandbox.dir(format!("round-{round}"));
        let stack = Stack::new(&lamina, &lower, &dir);
        let mount = stack.mount_for(round, &target);
        let load = Load::start(&target, Arc::new(|| 0), seed + round);
        std::thread::sleep(Duration::from_millis(5 + rng.below(400) as u64));
        kill(&lamina, &sandbox, &target);
        let history = load.join_failed();
        lamina.ok(words(&["umount"], &target));
        drop(mount);

        let mount = stack.mount(&target);
        let scratch = fs::read_dir(stack.layers.work.join("work")).unwrap();
        let left: Vec<_> = scratch.map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.is_empty(), "left in the work directory: {left:?}");
        let faults = history.faults(&target, Sure::Done, 0);
        assert!(
            faults.is_empty(),
            "seed {seed}, round {round}, {} answers:\n{}",
            history.len(),
            faults.join("\n")
        );
        answers += history.len();
        stack.assert_overlayfs_shows_the_same(mount);
        fs::remove_dir_all(dir).unwrap();
    }
    assert!(
        answers > 100,
        "there was hardly any load: {answers} answers"
    );
    let after = Tree::read(&lower);
    before.assert_same("the lower before", &after, "after", Ignore::NOTHING);
}

/// Runs the load on a disk that remembers; `volatile` without syncing.
struct PowerCut {
    sandbox: Sandbox,
    lamina: Lamina,
    lower: PathBuf,
    disk: Disk,
    history: Arc<load::History>,
    /// The moments at which the load began and ended.
    during: (usize, usize),
}

impl PowerCut {
    fn record(name: &str, seed: u64, round: u64, volatile: bool) -> Self {
        let sandbox = Sandbox::new(name);
        let lamina = Lamina::new(&sandbox);
        let lower = sandbox.dir("lower");
        load::prepare(&lower);
        let disk = Disk::new(&sandbox, 512);
        let stack = Stack::new(&lamina, &lower, disk.path());
        // The directories themselves are there before anything happens.
        run(&mut Command::new("sync"));
        let target = sandbox.join("mnt");
        let mount = if volatile {
            stack.mount_volatile(&target)
        } else {
            stack.mount_for(round, &target)
        };
        let begun = disk.now();
        let load = Load::start(&target, disk.clock(), seed);
        std::thread::sleep(Duration::from_secs(3));
        let ended = disk.now();
        let history = load.stop();
        mount.unmount();
        Self {
            sandbox,
            lamina,
            lower,
            disk,
            history,
            during: (begun, ended),
        }
    }

    /// What is wrong after the power failed at `moment`.
    fn faults_at(&self, moment: usize, rng: &mut Rng) -> Vec<String> {
        let image = self.sandbox.join("crashed.img");
        self.disk.image_at(moment, rng, &image);
        let mounted = Mounted::new(&image, &self.sandbox.join("crashed"), "");
        mounted.unmount();
        run(Command::new("e2fsck").args(["-f", "-n"]).arg(&image));
        let mounted = Mounted::new(&image, &self.sandbox.join("crashed"), "");
        let stack = Stack::new(&self.lamina, &self.lower, mounted.path());
        // A volatile upper is refused, for good reason; here it is the reason that matters.
        drop(fs::remove_dir_all(stack.layers.work.join("work/incompat")));
        let target = self.sandbox.join("mnt");
        let mount = stack.mount(&target);
        let faults = self.history.faults(&target, Sure::Synced, moment);
        if faults.is_empty() {
            stack.assert_overlayfs_shows_the_same(mount);
        } else {
            mount.unmount();
        }
        mounted.unmount();
        faults
    }
}

#[test]
fn what_was_synced_is_there_after_a_power_cut() {
    needs_root!();
    let seed = seed();
    let mut rng = Rng::new(seed);
    let mut left = rounds();
    for round in 0.. {
        if left == 0 {
            break;
        }
        let cut = PowerCut::record("powercut", seed + left, round, false);
        let (begun, ended) = cut.during;
        assert!(ended > begun + 100, "the load did not reach the disk");
        for _ in 0..left.min(5.max(rounds() / 10)) {
            let moment = begun + rng.below(ended - begun);
            let faults = cut.faults_at(moment, &mut rng);
            assert!(
                faults.is_empty(),
                "seed {seed}, moment {moment} of {begun} to {ended}:\n{}",
                faults.join("\n")
            );
            left -= 1;
        }
    }
}

/// This is also what shows that the test above can fail.
#[test]
fn a_volatile_mount_syncs_nothing_until_its_end() {
    needs_root!();
    let seed = seed();
    let mut rng = Rng::new(seed);
    let cut = PowerCut::record("volatile", seed, 0, true);
    let moments = (0..5).map(|part| cut.during.1 - part);
    let mut faults = moments.flat_map(|moment| cut.faults_at(moment, &mut rng));
    assert!(
        faults.any(|fault| fault.contains("none of the versions")),
        "all that was synced is there, though nothing was to be synced"
    );
    // The end in order made up for it.
    let faults = cut.faults_at(cut.disk.now(), &mut Rng::new(0));
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_volatile_upper_is_refused_after_a_crash() {
    needs_root!();
    let sandbox = Sandbox::new("volatile-mark");
    let lamina = Lamina::new(&sandbox);
    let (lower, target) = (sandbox.dir("lower"), sandbox.join("mnt"));
    fs::write(lower.join("file"), "lower").unwrap();
    let stack = Stack::new(&lamina, &lower, &sandbox.dir("changes"));
    let mark = stack.layers.work.join("work/incompat/volatile");

    let mount = stack.mount_volatile(&target);
    assert!(mark.exists());
    fs::write(target.join("file"), "changed").unwrap();
    mount.unmount();
    assert!(!mark.exists(), "the mark outlives an end in order");

    let mount = stack.mount_volatile(&target);
    kill(&lamina, &sandbox, &target);
    lamina.ok(words(&["umount"], &target));
    drop(mount);
    for more in [None, Some("--volatile")] {
        let mut arguments = vec!["mount".to_owned()];
        arguments.extend(stack.layers.lamina_options());
        arguments.extend(more.map(str::to_owned));
        arguments.push(target.display().to_string());
        let message = lamina.fails(1, arguments);
        for word in ["volatile", mark.to_str().unwrap()] {
            assert!(message.contains(word), "{word}: {message}");
        }
    }
    // Kernel overlayfs knows the mark too.
    let refused = Overlayfs::try_mount(&stack.layers, "index=off", &target);
    assert!(refused.is_err(), "overlayfs took a volatile upper");

    fs::remove_dir(&mark).unwrap();
    let mount = stack.mount(&target);
    assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "changed");
    mount.unmount();
}
