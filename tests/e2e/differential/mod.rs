//! The same random operations on Lamina, on kernel overlayfs and in a plain directory: results,
//! error numbers and the trees they leave must be the same, with caches dropped and after a remount
//! too.
//!
//! The plain directory says what is right. Kernel overlayfs runs along to show whether a difference
//! lies in the nature of unions; `known.rs` has the table of what may differ. A failing case is
//! shortened before it is shown.
//!
//! There are long sequences, each on filesystems of its own, and many short ones that share them,
//! each in a directory of its own: mounting costs more than a short sequence does.
//!
//! `LAMINA_DIFFERENTIAL_CASES` sets how many long sequences are run, `LAMINA_DIFFERENTIAL_SHORT_CASES`
//! how many short ones, `LAMINA_DIFFERENTIAL_SEED` the first seed (default 1),
//! `LAMINA_DIFFERENTIAL_STEPS` how many operations a long sequence has (default 400).

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

/// How long a sequence is and what it is interrupted by.
#[derive(Clone, Copy)]
struct Shape {
    steps: usize,
    /// Every so many steps is a comparison of whole trees.
    check_every: usize,
    /// Every so many comparisons come with a remount.
    remount_every: usize,
    /// Every so many of the others come with a rotation of layers, where the case has them.
    rotate_every: usize,
}

/// A sequence on filesystems of its own.
const LONG: Shape = Shape {
    steps: 400,
    check_every: 40,
    remount_every: 3,
    rotate_every: 2,
};

/// A sequence that shares filesystems with others.
const SHORT: Shape = Shape {
    steps: 36,
    check_every: 18,
    remount_every: 2,
    rotate_every: 1,
};

/// How many short sequences share filesystems.
const CROWD: u64 = 100;

#[test]
fn lamina_behaves_as_a_plain_directory() {
    needs_root!();
    for seed in seeds("LAMINA_DIFFERENTIAL_CASES", 20) {
        check_alone(seed, LONG, Range::Common, ALL);
    }
}

/// The upper becomes a lower: as a plain directory, and committed to an image.
#[test]
fn lamina_behaves_as_a_plain_directory_when_layers_rotate() {
    needs_root!();
    for seed in seeds("LAMINA_DIFFERENTIAL_CASES", 8) {
        check_alone(seed, LONG, Range::Rotating, ROTATING);
    }
}

#[test]
fn many_short_sequences() {
    needs_root!();
    check_crowds("LAMINA_DIFFERENTIAL_SHORT_CASES", Range::Common, ALL);
}

#[test]
fn many_short_sequences_with_rotation() {
    needs_root!();
    check_crowds("LAMINA_DIFFERENTIAL_SHORT_CASES", Range::Rotating, ROTATING);
}

#[test]
fn the_harness_finds_kernel_overlayfs_and_a_plain_directory_alike() {
    needs_root!();
    for seed in seeds("LAMINA_DIFFERENTIAL_CASES", 4) {
        check_alone(seed, LONG, Range::Common, &[Kind::Native, Kind::Overlayfs]);
    }
}

const ALL: &[Kind] = &[
    Kind::Native,
    Kind::Overlayfs,
    Kind::LaminaDirs,
    Kind::LaminaImage,
];

/// Kernel overlayfs cannot make devices 0:0, which are among the operations with rotation.
const ROTATING: &[Kind] = &[Kind::Native, Kind::LaminaDirs, Kind::LaminaImage];

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().expect("a number"))
}

fn seeds(count: &str, default_count: u64) -> std::ops::Range<u64> {
    let first = number("LAMINA_DIFFERENTIAL_SEED").unwrap_or(1);
    first..first + number(count).unwrap_or(default_count)
}

/// Runs short sequences, as many as the variable `count` says, and panics at the first that shows a
/// difference.
fn check_crowds(count: &str, range: Range, kinds: &'static [Kind]) {
    let seeds = seeds(count, 2 * CROWD);
    for first in seeds.clone().step_by(CROWD as usize) {
        let crowd = first..seeds.end.min(first + CROWD);
        let cases: Vec<Case> = crowd
            .clone()
            .map(|seed| Case {
                place: format!("case{seed}"),
                ..Case::new(seed, SHORT, range)
            })
            .collect();
        let Err(failure) = run_cases(range, kinds, cases) else {
            eprintln!("no difference with seeds {crowd:?}");
            continue;
        };
        let shown_by = |seed: &u64| {
            let place = format!("case{seed}");
            [format!("{place}/"), format!("{place}:")]
                .iter()
                .any(|place| failure.what.contains(place))
        };
        for seed in crowd.clone().filter(shown_by) {
            check_alone(seed, SHORT, range, kinds);
        }
        panic!(
            "seeds {crowd:?} on the same filesystems, {kinds:?}: {}\nafter step {}",
            failure.what, failure.at
        );
    }
}

/// Runs the case of `seed` on `kinds`, and panics with a shortened one if they disagree.
fn check_alone(seed: u64, shape: Shape, range: Range, kinds: &'static [Kind]) {
    let mut case = Case::new(seed, shape, range);
    let Err(mut failure) = run_cases(range, kinds, vec![case.clone()]) else {
        return;
    };
    case.steps.truncate(failure.at + 1);
    shorten(range, kinds, &mut case, &mut failure);
    let mut message = format!(
        "seed {seed}, {kinds:?}: {}\nafter these steps:\n",
        failure.what
    );
    for step in &case.steps {
        let _ = writeln!(message, "  {step}");
    }
    panic!("{message}");
}

/// Drops steps for as long as the case goes on failing, for two minutes at most.
fn shorten(range: Range, kinds: &'static [Kind], case: &mut Case, failure: &mut Failure) {
    let deadline = Instant::now() + Duration::from_secs(120);
    let mut chunk = case.steps.len().div_ceil(2);
    while chunk > 0 {
        let mut start = 0;
        while start < case.steps.len() && Instant::now() < deadline {
            let mut fewer = case.clone();
            let end = (start + chunk).min(case.steps.len());
            fewer.steps.drain(start..end);
            match run_cases(range, kinds, vec![fewer.clone()]) {
                Err(found) => {
                    fewer.steps.truncate(found.at + 1);
                    *case = fewer;
                    *failure = found;
                }
                Ok(()) => start += chunk,
            }
        }
        chunk /= 2;
    }
}

/// A sequence, and the tree it starts with.
#[derive(Clone)]
struct Case {
    seed: u64,
    /// The directory it is played in, relative to the root.
    place: String,
    steps: Vec<Step>,
}

impl Case {
    /// The case of `seed`, played in the root.
    fn new(seed: u64, shape: Shape, range: Range) -> Self {
        Self {
            seed,
            place: String::new(),
            steps: steps(seed, shape, range),
        }
    }

    /// The steps from `at` on up to the next comparison of whole trees.
    fn part(&self, at: usize) -> &[Step] {
        let rest = &self.steps[at..];
        let is_check = |step: &Step| matches!(step.op, Op::Check { .. });
        &rest[..rest.iter().position(is_check).unwrap_or(rest.len())]
    }
}

fn steps(seed: u64, shape: Shape, range: Range) -> Vec<Step> {
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
            then: if number.is_multiple_of(shape.remount_every) {
                Then::Remount
            } else if range != Range::Common && number.is_multiple_of(shape.rotate_every) {
                Then::Rotate
            } else {
                Then::DropCaches
            },
        },
        who: Who::Root,
        umask: UMASK,
    };
    let count = if shape.steps == LONG.steps {
        number("LAMINA_DIFFERENTIAL_STEPS").map_or(LONG.steps, |count| count as usize)
    } else {
        shape.steps
    };
    (1..=count)
        .map(|at| {
            if at % shape.check_every == 0 {
                check(at / shape.check_every)
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

/// Plays `cases` side by side on fresh filesystems. Creating files obeys the umask, which is the
/// process's.
fn run_cases(range: Range, kinds: &'static [Kind], cases: Vec<Case>) -> Result<(), Failure> {
    let sandbox = Sandbox::new("differential");
    let starts: Vec<_> = cases
        .iter()
        .map(|case| (case.place.as_str(), case.seed))
        .collect();
    let lowers = lowers::make(&sandbox, &starts, range != Range::Rotating);
    // A thread of its own, as steps change the thread's user.
    let played = std::thread::spawn(move || {
        rustix::thread::set_thread_groups(&[]).expect("dropping groups");
        let mut sides: Vec<Side> = kinds
            .iter()
            .map(|&kind| Side::new(kind, &sandbox, &lowers))
            .collect();
        let result = play(&mut sides, &cases);
        sides.iter_mut().for_each(Side::unmount);
        let result = result.and_then(|at| {
            // A device 0:0 in the upper is a whiteout to the kernel.
            if !kinds.contains(&Kind::Overlayfs) {
                return Ok(());
            }
            exchange(&mut sides).map_err(|what| Failure { at, what })
        });
        drop(sandbox);
        result
    });
    match played.join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Plays all cases up to their first comparison of whole trees, compares, goes on to the next. Tells
/// the number of the last step.
fn play(sides: &mut [Side], cases: &[Case]) -> Result<usize, Failure> {
    if cases.len() == 1 {
        compare_trees(sides).map_err(|what| Failure {
            at: 0,
            what: format!("before any step: {what}"),
        })?;
    }
    let mut at = 0;
    while at < cases[0].steps.len() {
        for case in cases {
            for side in sides.iter_mut() {
                side.enter(&case.place);
            }
            for (offset, step) in case.part(at).iter().enumerate() {
                compare_outcomes(sides, step).map_err(|what| Failure {
                    at: at + offset,
                    what: format!("{}/: {what}", case.place),
                })?;
            }
        }
        // Comparisons are at the same places in all cases.
        at += cases[0].part(at).len();
        let Some(Step {
            op: Op::Check { then },
            ..
        }) = cases[0].steps.get(at)
        else {
            compare_trees(sides).map_err(|what| Failure { at: at - 1, what })?;
            break;
        };
        compare_and_go_on(sides, *then).map_err(|what| Failure { at, what })?;
        at += 1;
    }
    Ok(at.saturating_sub(1))
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

/// Compares the trees, has `then` happen, and compares them again.
fn compare_and_go_on(sides: &mut [Side], then: Then) -> Result<(), String> {
    let before = compare_trees(sides)?;
    let (how, is_same) = match then {
        Then::DropCaches => ("with caches dropped", true),
        Then::Remount => ("after a remount", true),
        Then::Rotate => ("with layers rotated", false),
    };
    // All sides, so that files open across it are closed on all of them.
    match then {
        Then::DropCaches => {
            std::fs::write("/proc/sys/vm/drop_caches", "2").expect("dropping caches");
        }
        Then::Remount => sides.iter_mut().for_each(Side::remount),
        Then::Rotate => sides.iter_mut().for_each(Side::rotate),
    }
    let found = compare_trees(sides).and_then(|trees| {
        if is_same {
            return compare_with_before(sides, &trees, &before);
        }
        Ok(())
    });
    found.map_err(|what| format!("{how}: {what}"))
}

/// Nothing changed in any side: inode numbers and times are what they were.
fn compare_with_before(sides: &[Side], now: &[Tree], before: &[Tree]) -> Result<(), String> {
    for ((side, now), before) in sides.iter().zip(now).zip(before) {
        if side.kind == Kind::Overlayfs {
            continue; // its numbers of hard links change
        }
        let lines = before.differences(now, Ignore::NOTHING);
        if let Some(line) = lines.first() {
            return Err(format!("{:?} is not what it was: {line}", side.kind));
        }
    }
    Ok(())
}

/// Reads the trees of all sides, which must be alike.
fn compare_trees(sides: &[Side]) -> Result<Vec<Tree>, String> {
    let ignore = Ignore {
        mtime: false,
        dir_nlink: true,
        ino: true,
    };
    let trees: Vec<Tree> = sides.iter().map(Side::tree).collect();
    let native = trees[0].clone().with_recent_times_alike();
    for (side, tree) in sides.iter().zip(&trees).skip(1) {
        let mut lines = native.differences(&tree.clone().with_recent_times_alike(), ignore);
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
    Ok(trees)
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
