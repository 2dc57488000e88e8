//! Locks and atomics of what threads share.
//!
//! With the feature `shuttle`, which is for tests only, they are those of the scheduler of that name: it
//! runs a test again and again, each time with other interleavings (`union/tests_shuttle.rs`).

#[cfg(not(feature = "shuttle"))]
pub use parking_lot::{Mutex, MutexGuard, RwLock, RwLockWriteGuard};
#[cfg(not(feature = "shuttle"))]
pub use std::sync::atomic;

#[cfg(feature = "shuttle")]
pub use shuttle::sync::atomic;
#[cfg(feature = "shuttle")]
pub use shuttle_parking_lot::{Mutex, MutexGuard, RwLock, RwLockWriteGuard};
