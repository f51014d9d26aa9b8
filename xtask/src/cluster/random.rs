//! Which node to ask, and names that no other run uses. Nothing here needs to be repeatable.

use std::{
    cell::Cell,
    hash::{BuildHasher, RandomState},
};

thread_local! {
    /// Never zero, which xorshift would not leave.
    static STATE: Cell<u64> = Cell::new(RandomState::new().hash_one(0_u8) | 1);
}

/// A random number (xorshift64: G. Marsaglia, "Xorshift RNGs", 2003).
pub fn number() -> u64 {
    STATE.with(|state| {
        let mut x = state.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        state.set(x);
        x
    })
}

/// A random number below `bound`, or 0 where there is none.
pub fn below(bound: usize) -> usize {
    (number() >> 16) as usize % bound.max(1)
}
