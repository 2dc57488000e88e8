//! Where the sides may differ, and why. Everything else is a bug.
//!
//! Some things are not in the table but kept out of the generator or of the comparison, since the
//! trees would differ from then on:
//! - `chown(-1, -1)` takes set-id bits away from an executable. FUSE sends the same request before a
//!   write by root, which does not; so only the owner's does.
//! - `COLLAPSE_RANGE` and `INSERT_RANGE` are `EOPNOTSUPP` on every FUSE mount.
//! - Writing to a fifo changes its times on a disk filesystem; FUSE does not hear of it.
//! - A rename that fails changes the time of its old directory on ext4, if it was to leave a whiteout.
//! - A hard link into another layer: a commit, and an upper that becomes a lower, hold names that
//!   were moved with their directory as files of their own.

use super::op::{Op, Outcome};
use super::side::Kind;

/// Whether Lamina is tested in passthrough mode.
pub fn passes_through() -> bool {
    std::env::var_os("LAMINA_IO").is_some_and(|mode| mode == "passthrough")
}

/// One intended difference from a plain directory.
struct Known {
    /// Which filesystems show it.
    who: &'static [Kind],
    /// Whether `outcome` in place of `native` for `op` is this difference.
    applies: fn(op: &Op, native: &Outcome, outcome: &Outcome) -> bool,
    /// Why it is right, or at least settled.
    #[allow(dead_code, reason = "for the reader of the table")]
    reason: &'static str,
}

const OVERLAYFS: &[Kind] = &[Kind::Overlayfs];
const LAMINA: &[Kind] = &[Kind::LaminaDirs, Kind::LaminaImage];

/// Whether an operation shows what an open file has.
fn reads_slot(op: &Op) -> bool {
    matches!(
        op,
        Op::SlotRead { .. }
            | Op::SlotReadVec { .. }
            | Op::SlotStat { .. }
            | Op::SlotMap { .. }
            | Op::SlotSeek { .. }
            | Op::SlotListXattr { .. }
            | Op::SlotList { .. }
    )
}

const TABLE: &[Known] = &[
    Known {
        who: OVERLAYFS,
        applies: |op, _, _| reads_slot(op),
        reason: "overlayfs: a file opened for reading before its copy-up goes on showing the lower file; \
                 Lamina shows the new data, as a plain directory does",
    },
    Known {
        who: LAMINA,
        applies: |op, _, _| reads_slot(op) && passes_through(),
        reason: "passthrough: a file opened for reading before its copy-up goes on showing the lower file",
    },
    Known {
        who: OVERLAYFS,
        applies: |op, native, outcome| {
            matches!(op, Op::Segments { .. }) && native.is_ok() && outcome.is_ok()
        },
        reason: "overlayfs: a copy-up keeps holes only roughly",
    },
    Known {
        who: OVERLAYFS,
        applies: |op, _, outcome| {
            matches!(
                op,
                Op::SlotChmod { .. }
                    | Op::SlotXattr { .. }
                    | Op::SlotChown { .. }
                    | Op::SlotUtimens { .. }
            ) && outcome.is_err()
        },
        reason: "overlayfs: an open lower file that was removed cannot always be copied up any more",
    },
];

/// Whether `kind` may answer `op` with `outcome` where a plain directory answers `native`.
pub fn is_known(kind: Kind, op: &Op, native: &Outcome, outcome: &Outcome) -> bool {
    TABLE
        .iter()
        .any(|known| known.who.contains(&kind) && (known.applies)(op, native, outcome))
}

/// Whether `kind` may show `line` when its tree is compared with that of a plain directory.
///
/// After `link(2)` of a lower file, overlayfs lists the new name with another inode number than its
/// `stat` gives; a rename that fails may leave a new time on a directory it had copied up.
pub fn is_known_of_trees(kind: Kind, line: &str) -> bool {
    kind == Kind::Overlayfs && (line.contains("is listed as inode") || line.contains(": mtime: "))
}

/// What may differ between overlayfs and Lamina looking at the same upper: which names are one file
/// when only some of them were copied up, which each of them remembers in its own way.
pub fn is_known_of_uppers(line: &str) -> bool {
    ["link count: ", "same inode as: ", "is listed as inode"]
        .iter()
        .any(|known| line.contains(known))
}
