//! The same random operations on Lamina, on kernel overlayfs and in a plain directory: results,
//! error numbers and the trees they leave must be the same, with caches dropped and after a remount
//! too.
//!
//! The plain directory says what is right. Kernel overlayfs runs along to show whether a difference
//! lies in the nature of unions; `known.rs` has the table of what may differ. A failing case is
//! shortened before it is shown.
//!
//! `LAMINA_DIFFERENTIAL_CASES` sets how many cases are run (default 30), `LAMINA_DIFFERENTIAL_SEED`
//! the first seed (default 1), `LAMINA_DIFFERENTIAL_STEPS` how many operations a case has (default
//! 400).

mod apply;
mod apply_open;
mod generate;
mod generate_open;
pub mod known;
mod lowers;
mod op;
pub mod rng;
mod side;

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use generate::{Generator, Range};
use op::{Op, Step, Then, UMASK, Who};
use side::{Kind, Side};

use crate::support::needs_root;
use crate::support::sandbox::Sandbox;
use crate::support::tree::{Ignore, Tree};

/// Operations of a case.
const STEPS: usize = 400;
/// Every so many of them is a comparison of whole trees.
const CHECK_EVERY: usize = 40;
/// Every so many comparisons come with a remount.
const REMOUNT_EVERY: usize = 3;
/// Every so many of the others come with a rotation of layers, where the case has them.
const ROTATE_EVERY: usize = 2;

#[test]
fn lamina_behaves_as_a_plain_directory() {
    needs_root!();
    for seed in seeds(30) {
        check(
            seed,
            Range::Common,
            &[
                Kind::Native,
                Kind::Overlayfs,
                Kind::LaminaDirs,
                Kind::LaminaImage,
            ],
        );
    }
}

/// The upper becomes a lower: as a plain directory, and committed to an image. Kernel overlayfs
/// cannot make devices 0:0, which are among the operations here.
#[test]
fn lamina_behaves_as_a_plain_directory_when_layers_rotate() {
    needs_root!();
    for seed in seeds(10) {
        check(
            seed,
            Range::Rotating,
            &[Kind::Native, Kind::LaminaDirs, Kind::LaminaImage],
        );
    }
}

#[test]
fn the_harness_finds_kernel_overlayfs_and_a_plain_directory_alike() {
    needs_root!();
    for seed in seeds(4) {
        check(seed, Range::Common, &[Kind::Native, Kind::Overlayfs]);
    }
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().expect("a number"))
}

fn steps_of_a_case() -> usize {
    number("LAMINA_DIFFERENTIAL_STEPS").map_or(STEPS, |count| count as usize)
}

fn seeds(default_count: u64) -> std::ops::Range<u64> {
    let first = number("LAMINA_DIFFERENTIAL_SEED").unwrap_or(1);
    first..first + number("LAMINA_DIFFERENTIAL_CASES").unwrap_or(default_count)
}

/// Runs the case of `seed` on `kinds`, and panics with a shortened one if they disagree.
fn check(seed: u64, range: Range, kinds: &'static [Kind]) {
    let steps = steps(seed, range);
    let Err(mut failure) = run_case(seed, range, kinds, &steps) else {
        return;
    };
    let mut shortest = steps;
    shortest.truncate(failure.at + 1);
    shorten(seed, range, kinds, &mut shortest, &mut failure);
    let mut message = format!(
        "seed {seed}, {kinds:?}: {}\nafter these steps:\n",
        failure.what
    );
    for step in &shortest {
        let _ = writeln!(message, "  {step}");
    }
    panic!("{message}");
}

/// Drops steps for as long as the case goes on failing, for two minutes at most.
fn shorten(
    seed: u64,
    range: Range,
    kinds: &'static [Kind],
    steps: &mut Vec<Step>,
    failure: &mut Failure,
) {
    let deadline = Instant::now() + Duration::from_secs(120);
    let mut chunk = steps.len().div_ceil(2);
    while chunk > 0 {
        let mut start = 0;
        while start < steps.len() && Instant::now() < deadline {
            let mut fewer = steps.clone();
            fewer.drain(start..(start + chunk).min(steps.len()));
            match run_case(seed, range, kinds, &fewer) {
                Err(found) => {
                    fewer.truncate(found.at + 1);
                    *steps = fewer;
                    *failure = found;
                }
                Ok(()) => start += chunk,
            }
        }
        chunk /= 2;
    }
}

fn steps(seed: u64, range: Range) -> Vec<Step> {
    let files = [
        "f0",
        "a/f1",
        "a/f1b",
        "a/f2",
        "a/deep/f3",
        "a/deep/er/f4",
        "b/f5",
        "b/sub/f6",
        "c/f7",
        "b/sparse",
        "b/linked",
    ];
    let more = [
        "a/deep/linked",
        "opaque/new/file",
        "only-top/f8",
        "replaced",
        "c/turns-dir/file",
        "c/fifo",
    ];
    let dirs = [
        "a",
        "a/deep",
        "a/deep/er",
        "b",
        "b/sub",
        "c",
        "c/turns-dir",
        "opaque",
        "opaque/new",
        "only-top",
        "empty",
    ];
    let links = ["a/link", "b/dirlink", "dangling"];
    let owned = |names: &[&str]| {
        names
            .iter()
            .map(|name| (*name).to_owned())
            .collect::<Vec<_>>()
    };
    let mut generator = Generator::new(
        seed,
        range,
        [owned(&files), owned(&more)].concat(),
        owned(&dirs),
        owned(&links),
    );
    // Checks are steps too, so that a shortened case has them at the same places.
    let check = |number: usize| Step {
        op: Op::Check {
            then: if number.is_multiple_of(REMOUNT_EVERY) {
                Then::Remount
            } else if range != Range::Common && number.is_multiple_of(ROTATE_EVERY) {
                Then::Rotate
            } else {
                Then::Nothing
            },
        },
        who: Who::Root,
        umask: UMASK,
    };
    (1..=steps_of_a_case())
        .map(|at| {
            if at % CHECK_EVERY == 0 {
                check(at / CHECK_EVERY)
            } else {
                generator.step()
            }
        })
        .collect()
}

/// A disagreement: after which step, and what it was.
struct Failure {
    at: usize,
    what: String,
}

/// Runs `steps` on fresh filesystems. Creating files obeys the umask, which is the process's.
fn run_case(
    seed: u64,
    range: Range,
    kinds: &'static [Kind],
    steps: &[Step],
) -> Result<(), Failure> {
    let sandbox = Sandbox::new("differential");
    let lowers = lowers::make(&sandbox, seed, range != Range::Rotating);
    let steps = steps.to_vec();
    // A thread of its own, as steps change the thread's user.
    let case = std::thread::spawn(move || {
        rustix::thread::set_thread_groups(&[]).expect("dropping groups");
        let mut sides: Vec<Side> = kinds
            .iter()
            .map(|&kind| Side::new(kind, &sandbox, &lowers))
            .collect();
        let result = run_steps(&mut sides, &steps);
        sides.iter_mut().for_each(Side::unmount);
        let result = result.and_then(|()| {
            // A device 0:0 in the upper is a whiteout to the kernel.
            if !kinds.contains(&Kind::Overlayfs) {
                return Ok(());
            }
            exchange(&mut sides).map_err(|what| Failure {
                at: steps.len().saturating_sub(1),
                what,
            })
        });
        drop(sandbox);
        result
    });
    match case.join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn run_steps(sides: &mut [Side], steps: &[Step]) -> Result<(), Failure> {
    compare_trees(sides).map_err(|what| Failure {
        at: 0,
        what: format!("before any step: {what}"),
    })?;
    for (at, step) in steps.iter().enumerate() {
        match step.op {
            Op::Check { then } => compare_with_caches_gone(sides, then),
            _ => compare_outcomes(sides, step),
        }
        .map_err(|what| Failure { at, what })?;
    }
    compare_trees(sides).map_err(|what| Failure {
        at: steps.len().saturating_sub(1),
        what,
    })
}

/// An upper means the same to the kernel and to Lamina, whichever of them wrote it.
fn exchange(sides: &mut [Side]) -> Result<(), String> {
    for side in sides
        .iter_mut()
        .filter(|side| matches!(side.kind, Kind::Overlayfs | Kind::LaminaDirs))
    {
        let by_kernel = side
            .tree_mounted_by(Kind::Overlayfs)
            .with_recent_times_alike();
        let by_lamina = side
            .tree_mounted_by(Kind::LaminaDirs)
            .with_recent_times_alike();
        let mut lines = by_kernel.differences(
            &by_lamina,
            Ignore {
                mtime: false,
                dir_nlink: true,
                ino: true,
            },
        );
        lines.retain(|line| !known::is_known_of_uppers(line));
        if !lines.is_empty() {
            let shown = lines
                .into_iter()
                .take(12)
                .collect::<Vec<_>>()
                .join("\n    ");
            return Err(format!(
                "the upper of {:?} as overlayfs sees it and as Lamina does (second):\n    {shown}",
                side.kind
            ));
        }
    }
    Ok(())
}

fn compare_outcomes(sides: &mut [Side], step: &Step) -> Result<(), String> {
    let outcomes: Vec<_> = sides
        .iter_mut()
        .map(|side| (side.kind, step.apply(side)))
        .collect();
    let native = &outcomes[0].1;
    let wrong = |(kind, outcome): &&(Kind, op::Outcome)| {
        outcome != native && !known::is_known(*kind, &step.op, native, outcome)
    };
    match outcomes.iter().find(wrong) {
        None => Ok(()),
        Some((kind, _)) => {
            let mut message = format!("{kind:?} answers otherwise to\n  {step}\n");
            for (kind, outcome) in &outcomes {
                let _ = writeln!(message, "    {kind:?}: {outcome:?}");
            }
            Err(message)
        }
    }
}

fn compare_with_caches_gone(sides: &mut [Side], then: Then) -> Result<(), String> {
    compare_trees(sides)?;
    let before: Vec<Tree> = sides.iter().map(Side::tree).collect();
    std::fs::write("/proc/sys/vm/drop_caches", "2").expect("dropping the caches");
    compare_trees(sides).map_err(|what| format!("with caches dropped: {what}"))?;
    compare_with_before(sides, &before).map_err(|what| format!("with caches dropped: {what}"))?;
    // All sides, so that files open across it are closed on all of them.
    match then {
        Then::Nothing => {}
        Then::Remount => {
            sides.iter_mut().for_each(Side::remount);
            compare_trees(sides).map_err(|what| format!("after a remount: {what}"))?;
            compare_with_before(sides, &before)
                .map_err(|what| format!("after a remount: {what}"))?;
        }
        Then::Rotate => {
            sides.iter_mut().for_each(Side::rotate);
            compare_trees(sides).map_err(|what| format!("with layers rotated: {what}"))?;
        }
    }
    Ok(())
}

/// Nothing changed in any side: inode numbers and times are what they were.
fn compare_with_before(sides: &[Side], before: &[Tree]) -> Result<(), String> {
    for (side, before) in sides.iter().zip(before) {
        if side.kind == Kind::Overlayfs {
            continue; // its numbers of hard links change
        }
        let lines = before.differences(&side.tree(), Ignore::NOTHING);
        if let Some(line) = lines.first() {
            return Err(format!("{:?} is not what it was: {line}", side.kind));
        }
    }
    Ok(())
}

fn compare_trees(sides: &[Side]) -> Result<(), String> {
    let ignore = Ignore {
        mtime: false,
        dir_nlink: true,
        ino: true,
    };
    let native = sides[0].tree().with_recent_times_alike();
    for side in &sides[1..] {
        let mut lines = native.differences(&side.tree().with_recent_times_alike(), ignore);
        lines.retain(|line| !known::is_known_of_trees(side.kind, line));
        if !lines.is_empty() {
            let shown = lines
                .into_iter()
                .take(12)
                .collect::<Vec<_>>()
                .join("\n    ");
            return Err(format!(
                "{:?} (second) has another tree than the plain directory:\n    {shown}",
                side.kind
            ));
        }
    }
    Ok(())
}

impl Tree {
    /// Files written during the test get one time, as no two sides write at the same moment.
    fn with_recent_times_alike(mut self) -> Self {
        self.forget_xattrs(b"trusted.lamina.");
        self.map_times(|time| {
            if time.0 > lowers::LOWER_TIME + 100_000_000 {
                (i64::MAX, 0)
            } else {
                time
            }
        });
        self
    }
}
