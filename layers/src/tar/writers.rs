//! Threads that write objects, so that creating files overlaps with reading the archive.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Scope, ScopedJoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use super::contents::{Piece, Sink};
use crate::digest::ObjectId;
use crate::store::{LargeObject, StoreError, Transaction};

/// Number of threads: creating files is mostly waiting for the kernel's locks.
const THREADS: usize = 2;
/// Most jobs waiting. What they hold is bounded by the pool of buffers.
const QUEUE: usize = 256;

enum Job {
    Put(ObjectId, u64, Vec<Piece>),
    Append(Arc<LargeObject>, Piece),
}

/// Gives objects to the threads.
pub struct Writers<'t> {
    txn: &'t Transaction<'t>,
    jobs: Sender<Job>,
    state: Arc<State>,
}

/// The first error of any thread.
#[derive(Default)]
struct State {
    failed: AtomicBool,
    error: Mutex<Option<StoreError>>,
}

impl State {
    fn fail(&self, error: StoreError) {
        self.error.lock().get_or_insert(error);
        self.failed.store(true, Ordering::Release);
    }

    fn check(&self) -> Result<(), StoreError> {
        if self.failed.load(Ordering::Acquire)
            && let Some(error) = self.error.lock().take()
        {
            return Err(error);
        }
        Ok(())
    }
}

/// The threads, to be waited for.
pub struct Running<'scope> {
    threads: Vec<ScopedJoinHandle<'scope, ()>>,
    state: Arc<State>,
}

impl Running<'_> {
    /// Waits for all jobs, when the [`Writers`] are gone. `None` if a thread panicked.
    pub fn join(self) -> Option<Result<(), StoreError>> {
        for thread in self.threads {
            thread.join().ok()?;
        }
        Some(self.state.check())
    }
}

impl<'t> Writers<'t> {
    /// Starts the threads.
    pub fn start<'scope>(
        txn: &'t Transaction<'t>,
        scope: &'scope Scope<'scope, '_>,
    ) -> (Self, Running<'scope>)
    where
        't: 'scope,
    {
        let (jobs, waiting) = bounded(QUEUE);
        let state = Arc::new(State::default());
        let threads = (0..THREADS)
            .map(|_| {
                let (waiting, state): (Receiver<Job>, _) = (waiting.clone(), Arc::clone(&state));
                scope.spawn(move || {
                    for job in waiting {
                        // After an error the jobs are only taken, so that nobody waits for ever.
                        if !state.failed.load(Ordering::Acquire)
                            && let Err(error) = run(txn, job)
                        {
                            state.fail(error);
                        }
                    }
                })
            })
            .collect();
        let running = Running {
            threads,
            state: Arc::clone(&state),
        };
        (Self { txn, jobs, state }, running)
    }

    fn send(&self, job: Job) -> Result<(), StoreError> {
        self.state.check()?;
        // The threads live as long as this. Should one have panicked, its end tells.
        let _ = self.jobs.send(job);
        Ok(())
    }
}

fn run(txn: &Transaction<'_>, job: Job) -> Result<(), StoreError> {
    match job {
        Job::Put(id, size, pieces) => {
            let pieces = pieces.iter().map(|(offset, slice)| (*offset, &**slice));
            txn.put_object(&id, size, pieces)
        }
        Job::Append(object, (offset, slice)) => txn.write_large(&object, &slice, offset),
    }
}

impl Sink for Writers<'_> {
    type Large = Arc<LargeObject>;

    fn put(&self, id: ObjectId, size: u64, pieces: Vec<Piece>) -> Result<(), StoreError> {
        self.send(Job::Put(id, size, pieces))
    }

    fn start(&self, size: u64, sparse: bool) -> Result<Self::Large, StoreError> {
        self.txn.start_large(size, sparse).map(Arc::new)
    }

    fn append(&self, object: &Self::Large, piece: Piece) -> Result<(), StoreError> {
        self.send(Job::Append(Arc::clone(object), piece))
    }

    fn finish(&self, object: Self::Large, id: ObjectId, size: u64) -> Result<(), StoreError> {
        self.txn.finish_large(&object, &id, size)
    }
}
