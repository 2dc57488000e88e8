//! Threads that serve requests, and others that stand in while some of them are busy for long.
//!
//! A thread that copies a large file up, or waits for a disk, serves nobody else meanwhile. Before it
//! does so it calls [`stand_in`]; if fewer threads are ready then than there should be, one more is
//! hired. Those who were hired stay.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

/// Most threads of one post.
const MOST: usize = 64;

/// The threads of all posts: places where requests arrive.
pub struct Crew {
    posts: Vec<Post>,
    /// How many threads of a post should be ready at any time.
    ready: usize,
    hire: Sender<Option<u16>>,
}

#[derive(Default)]
struct Post {
    threads: AtomicUsize,
    away: AtomicUsize,
}

thread_local! {
    static MINE: RefCell<Option<(Arc<Crew>, u16)>> = const { RefCell::new(None) };
}

impl Crew {
    /// A crew that starts with `ready` threads at each post, and where it is said which post needs one
    /// more: `None` at the end.
    pub fn new(posts: u16, ready: usize) -> (Arc<Self>, Receiver<Option<u16>>) {
        let (hire, hired) = channel();
        let post = || Post {
            threads: AtomicUsize::new(ready),
            away: AtomicUsize::new(0),
        };
        let posts = std::iter::repeat_with(post).take(usize::from(posts));
        let crew = Self {
            posts: posts.collect(),
            ready,
            hire,
        };
        (Arc::new(crew), hired)
    }

    /// Makes the calling thread one of a post.
    pub fn join(self: &Arc<Self>, post: u16) {
        MINE.set(Some((Arc::clone(self), post)));
    }

    /// Hires nobody any more.
    pub fn dismiss(&self) {
        // Nobody listens if that was said before.
        self.hire.send(None).unwrap_or_default();
    }

    fn post(&self, post: u16) -> Option<&Post> {
        self.posts.get(usize::from(post))
    }

    fn leave(&self, number: u16) {
        let Some(post) = self.post(number) else {
            return;
        };
        let away = post.away.fetch_add(1, Ordering::Relaxed) + 1;
        let wanted = (self.ready + away).min(MOST);
        // One at a time comes by here with this number of threads.
        let hired = post
            .threads
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |threads| {
                (threads < wanted).then_some(threads + 1)
            });
        if hired.is_ok() {
            self.hire.send(Some(number)).unwrap_or_default();
        }
    }

    fn come_back(&self, number: u16) {
        if let Some(post) = self.post(number) {
            post.away.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Says, for as long as it lives, that the calling thread serves no requests.
pub struct Away(Option<(Arc<Crew>, u16)>);

impl Drop for Away {
    fn drop(&mut self) {
        if let Some((crew, post)) = &self.0 {
            crew.come_back(*post);
        }
    }
}

/// To be called before what may take long.
pub fn stand_in() -> Away {
    let mine = MINE.with_borrow(Option::clone);
    if let Some((crew, post)) = &mine {
        crew.leave(*post);
    }
    Away(mine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_hired_for_each_that_is_away_and_stays() {
        let (crew, hired) = Crew::new(3, 2);
        crew.join(1);
        let first = stand_in();
        assert_eq!(hired.try_recv(), Ok(Some(1)));
        let second = stand_in();
        assert_eq!(hired.try_recv(), Ok(Some(1)));
        drop(first);
        let third = stand_in();
        assert!(
            hired.try_recv().is_err(),
            "there are four, two of them away"
        );
        drop((second, third));
        let all: Vec<_> = (0..2 * MOST).map(|_| stand_in()).collect();
        assert_eq!(hired.try_iter().count(), MOST - 4);
        drop(all);
        crew.dismiss();
        assert_eq!(hired.recv(), Ok(None));
        MINE.set(None);
        drop(stand_in());
    }
}
