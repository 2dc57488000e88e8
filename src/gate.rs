//! Holds changes back for a moment, so that somebody beside the daemon can look at an upper that
//! does not change.
//!
//! Every request that changes something passes the gate and is inside until it is answered. Closing
//! it waits for those inside; later ones wait before it, none is refused. What only reads does not
//! come by here.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::crew::stand_in;

/// The bit of the state that says that the gate is closed. The others count who is inside.
const CLOSED: u64 = 1 << 63;

/// How long those who come meanwhile are kept waiting for those who are inside, at first.
const FIRST_TRY: Duration = Duration::from_millis(50);

/// A gate, which is open.
#[derive(Debug, Default)]
pub struct Gate {
    state: AtomicU64,
    /// Held by who waits, and by who changes what is waited for.
    waiting: Mutex<()>,
    opened: Condvar,
    emptied: Condvar,
}

/// Somebody is inside until this is dropped.
#[derive(Debug)]
pub struct Inside<'a>(&'a Gate);

/// The gate is closed, and nobody inside, until this is dropped.
#[derive(Debug)]
pub struct Closed<'a>(&'a Gate);

/// Why the gate is not closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotClosed {
    /// Somebody else has it closed.
    #[error("somebody else holds changes back")]
    Taken,
    /// Somebody stays inside for long.
    #[error("a change that is under way takes too long")]
    Busy,
}

impl Gate {
    /// Goes in; waits while the gate is closed.
    pub fn enter(&self) -> Inside<'_> {
        loop {
            if self.state.fetch_add(1, Ordering::SeqCst) & CLOSED == 0 {
                return Inside(self);
            }
            self.leave();
            // Whoever only reads is served by others meanwhile.
            let _away = stand_in();
            let mut waiting = self.waiting.lock();
            while self.is_closed() {
                self.opened.wait(&mut waiting);
            }
        }
    }

    /// Closes the gate and waits until nobody is inside. When one stays long (a large file that is
    /// copied up), the others are let in meanwhile; that, and closing a gate that somebody else has
    /// closed, is tried again for at most `patience`.
    ///
    /// # Errors
    /// When it cannot be closed.
    pub fn close(&self, patience: Duration) -> Result<Closed<'_>, NotClosed> {
        let end = Instant::now() + patience;
        let mut each = FIRST_TRY;
        loop {
            let why = match self.try_close(each.min(patience)) {
                Ok(closed) => return Ok(closed),
                Err(why) => why,
            };
            if Instant::now() >= end {
                return Err(why);
            }
            match why {
                NotClosed::Taken => std::thread::sleep(FIRST_TRY / 10),
                NotClosed::Busy => {
                    std::thread::sleep(each);
                    each *= 2;
                }
            }
        }
    }

    fn try_close(&self, patience: Duration) -> Result<Closed<'_>, NotClosed> {
        if self.state.fetch_or(CLOSED, Ordering::SeqCst) & CLOSED != 0 {
            return Err(NotClosed::Taken);
        }
        let closed = Closed(self);
        let end = Instant::now() + patience;
        let mut waiting = self.waiting.lock();
        while self.state.load(Ordering::SeqCst) != CLOSED {
            if self.emptied.wait_until(&mut waiting, end).timed_out()
                && self.state.load(Ordering::SeqCst) != CLOSED
            {
                drop(waiting);
                return Err(NotClosed::Busy);
            }
        }
        drop(waiting);
        Ok(closed)
    }

    fn is_closed(&self) -> bool {
        self.state.load(Ordering::SeqCst) & CLOSED != 0
    }

    fn leave(&self) {
        if self.state.fetch_sub(1, Ordering::SeqCst) == CLOSED | 1 {
            let _waiting = self.waiting.lock();
            self.emptied.notify_all();
        }
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        let _waiting = self.0.waiting.lock();
        self.0.state.fetch_and(!CLOSED, Ordering::SeqCst);
        self.0.opened.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    const LONG: Duration = Duration::from_secs(600);

    #[test]
    fn nobody_is_inside_a_closed_gate() {
        let gate = Gate::default();
        let inside = AtomicU64::new(0);
        let end = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while !end.load(Ordering::Relaxed) {
                        let _inside = gate.enter();
                        inside.fetch_add(1, Ordering::SeqCst);
                        std::hint::spin_loop();
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
            for _ in 0..200 {
                let closed = gate.close(LONG);
                assert!(closed.is_ok());
                for _ in 0..100 {
                    assert_eq!(inside.load(Ordering::SeqCst), 0);
                }
            }
            end.store(true, Ordering::Relaxed);
        });
        assert_eq!(gate.state.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn one_who_stays_inside_does_not_shut_the_others_out() {
        let gate = Gate::default();
        let stays = gate.enter();
        assert_eq!(gate.close(Duration::ZERO).err(), Some(NotClosed::Busy));
        // It is open again.
        drop(gate.enter());
        drop(stays);
        let closed = gate.close(LONG);
        assert_eq!(gate.close(Duration::ZERO).err(), Some(NotClosed::Taken));
        drop(closed);
        drop(gate.enter());
    }
}
