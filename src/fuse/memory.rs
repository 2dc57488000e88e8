//! Requests and replies that are bytes in memory: the whole path of a request but for the kernel's part,
//! for benchmarks.

use std::sync::Arc;

use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::abi::OutHeader;
use super::handler::Handler;
use super::wire::{self, Reply, Request};
use crate::union::Union;

/// Serves a union in cached mode to whoever has the bytes of a request.
pub struct InMemory {
    handler: Handler,
}

impl InMemory {
    /// Serves this union.
    pub fn new(union: &Arc<Union>) -> Self {
        Self {
            handler: Handler {
                union: Arc::clone(union),
                opens: None,
                view: super::View::default(),
                setxattr_ext: false,
            },
        }
    }

    /// Answers a request as it would come from the device; `reply` is what would be written to it, and
    /// empty for a request that has no reply.
    pub fn answer(&self, request: &[u8], reply: &mut Vec<u8>) {
        reply.clear();
        let serve =
            |request: Request<'_>, reply: &mut Reply<'_>| self.handler.serve(request, reply);
        let request = Request::parse(request);
        wire::answer(request, &mut Sink(reply), &self.handler.union.stats, &serve);
    }
}

struct Sink<'a>(&'a mut Vec<u8>);

impl wire::Send for Sink<'_> {
    fn send(&mut self, header: OutHeader, bytes: &[u8]) -> Result<(), Errno> {
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}
