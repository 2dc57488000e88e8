//! The same work on several things at once.

use std::num::NonZero;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;

/// Works that are done at once if nothing is said.
const JOBS: usize = 4;

/// How many threads to take where nothing is said.
pub fn default_jobs() -> NonZero<usize> {
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    NonZero::new(processors.min(JOBS)).unwrap_or(NonZero::<usize>::MIN)
}

/// Does `work` on all things, `jobs` at once, and returns what came of them in their order. After a
/// failure, which is returned, `stop` is set and nothing new is begun.
pub fn on_all<T: Sync, R: Send, E: Send>(
    jobs: NonZero<usize>,
    things: &[T],
    stop: &AtomicBool,
    work: impl Fn(&T) -> Result<R, E> + Sync,
) -> Result<Vec<R>, E> {
    let next = AtomicUsize::new(0);
    let done: Vec<Mutex<Option<R>>> = things.iter().map(|_| Mutex::new(None)).collect();
    let failure = Mutex::new(None);
    let run = || {
        while !stop.load(Ordering::Relaxed) {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let (Some(thing), Some(slot)) = (things.get(at), done.get(at)) else {
                return;
            };
            match work(thing) {
                Ok(result) => *slot.lock() = Some(result),
                // Those that come later may have failed because of the first.
                Err(error) => {
                    if !stop.swap(true, Ordering::Relaxed) {
                        *failure.lock() = Some(error);
                    }
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..jobs.get().min(things.len()) {
            scope.spawn(run);
        }
        run();
    });
    match failure.into_inner() {
        Some(error) => Err(error),
        None => Ok(done.into_iter().filter_map(Mutex::into_inner).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_and_the_first_failure_ends_it() {
        let jobs = NonZero::new(3).unwrap();
        let things: Vec<u32> = (0..100).collect();
        let stop = AtomicBool::new(false);
        let done = on_all(jobs, &things, &stop, |thing| Ok::<_, ()>(thing * 2)).unwrap();
        assert_eq!(done, (0..200).step_by(2).collect::<Vec<_>>());
        let begun = AtomicUsize::new(0);
        let one = NonZero::<usize>::MIN;
        let failed = on_all(one, &things, &stop, |thing| {
            begun.fetch_add(1, Ordering::Relaxed);
            if *thing == 3 { Err(*thing) } else { Ok(()) }
        });
        assert_eq!((failed, begun.into_inner()), (Err(3), 4));
        assert!(stop.into_inner());
    }
}
