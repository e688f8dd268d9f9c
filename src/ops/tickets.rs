//! Where tickets lie. A kernel whose last block goes on with what all blocks wrote counts them in global memory (a ticket); it
//! needs counters that are zero, and leaves them at zero.

/// Bytes at the start of every workspace that belong to counters: zero before the first use, zero after each. So one workspace
/// serves all ops, one after the other; what follows is scratch memory.
pub const TICKET_BYTES: usize = 64 << 10;
