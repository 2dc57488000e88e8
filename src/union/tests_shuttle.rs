//! The tables that all threads share, under interleavings that a scheduler chooses:
//! `cargo test --features shuttle --lib shuttle`.

use std::sync::Arc;

use shuttle::thread;

use super::node::{Node, State, Table};
use crate::attr::Kind;
use crate::fuse::aliases::Aliases;
use crate::lower::Number;

/// Interleavings of each test.
const RUNS: usize = 20_000;

/// Numbers of the upper: image inodes are never dropped.
const PARENT: Number = Number(0x1_0000_0000_000a);
const FILE: Number = Number(0x1_0000_0000_0014);

fn look_up(table: &Table, number: Number, kind: Kind) -> Arc<Node> {
    table.get_or_insert(Node::new(number, kind, State::default()), true)
}

fn forget(table: &Arc<Table>, number: Number) -> Box<dyn FnOnce() + Send> {
    let table = Arc::clone(table);
    Box::new(move || drop(table.forget(number, 1)))
}

fn together<const N: usize>(acts: [Box<dyn FnOnce() + Send>; N]) {
    for thread in acts.map(thread::spawn) {
        assert!(thread.join().is_ok());
    }
}

/// The kernel gives lookups back in parts, while it looks the same file up again.
#[test]
fn a_node_that_the_kernel_knows_stays_in_the_table() {
    let run = || {
        let table = Arc::new(Table::new());
        look_up(&table, FILE, Kind::File);
        look_up(&table, FILE, Kind::File);
        let again = Arc::clone(&table);
        let look = Box::new(move || {
            let node = look_up(&again, FILE, Kind::File);
            let found = again.get_counted(FILE).unwrap();
            assert!(Arc::ptr_eq(&node, &found), "two nodes of one number");
        });
        together([forget(&table, FILE), forget(&table, FILE), look]);
        assert!(table.get(FILE).is_some(), "a known node was dropped");
        table.forget(FILE, 2);
        assert_eq!(table.len(), 0, "a forgotten node is left");
    };
    shuttle::check_random(run, RUNS);
    shuttle::check_pct(run, RUNS, 3);
}

/// The end of a file and of its directory come in any order, and from two threads.
#[test]
fn a_directory_outlives_what_is_in_it() {
    let run = || {
        let table = Arc::new(Table::new());
        let parent = look_up(&table, PARENT, Kind::Dir);
        look_up(&table, FILE, Kind::File).add_name(&parent, b"file");
        let watcher = Arc::clone(&table);
        let watch = Box::new(move || {
            if let Some(file) = watcher.get(FILE)
                && let Some(name) = file.any_name()
            {
                assert!(Arc::ptr_eq(&name.parent, &parent));
            }
        });
        together([forget(&table, FILE), forget(&table, PARENT), watch]);
        assert_eq!(table.len(), 0, "a forgotten node is left");
    };
    shuttle::check_random(run, RUNS);
    shuttle::check_pct(run, RUNS, 3);
}

/// A second node id that the kernel was told of means its file until the kernel gives it back.
#[test]
fn an_alias_that_the_kernel_knows_stays() {
    let run = || {
        let aliases = Arc::new(Aliases::default());
        aliases.retire(FILE);
        let looker = || {
            let aliases = Arc::clone(&aliases);
            Box::new(move || {
                let Some(id) = aliases.look_up(FILE) else {
                    return;
                };
                assert_eq!(aliases.number(id), Some(FILE));
                assert!(aliases.has_alias(FILE));
                assert_eq!(aliases.forget(id, 1), Some(FILE));
            })
        };
        let others = Arc::clone(&aliases);
        let reinstate = Box::new(move || {
            if others.reinstate(FILE) {
                others.retire(FILE);
            }
        });
        together([looker(), looker(), reinstate]);
        assert!(aliases.reinstate(FILE), "nobody knows it");
        assert!(!aliases.has_alias(FILE));
        assert_eq!(aliases.look_up(FILE), None);
    };
    shuttle::check_random(run, RUNS);
    shuttle::check_pct(run, RUNS, 3);
}
