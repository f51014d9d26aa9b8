//! What the simulated group replicates: a list that only grows, so that order, loss and repetition all show.

use super::truth::Observer;
use crate::value::{Context, Value};

crate::messages! {
    /// What was appended, in order, and the hash of it all.
    #[derive(Default)]
    pub(crate) struct Chain { pub(crate) items: Vec<u64>, pub(crate) hash: u64, padding: Vec<u8> }
    #[derive(Copy)]
    pub(crate) enum Change { Append(u64), Pad(u64) }
    /// A change, and bytes that make it as long as commands may be.
    pub(crate) struct Order { pub(crate) change: Change, pub(crate) filler: Vec<u8> }
    pub(crate) enum Look { All }
    #[derive(Copy)]
    pub(crate) struct Seen { pub(crate) length: u64, pub(crate) hash: u64 }
}

/// The hash after one more item.
pub(crate) fn chained(hash: u64, item: u64) -> u64 {
    let mixed = (hash ^ item.wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    mixed ^ (mixed >> 32)
}

impl Value for Chain {
    type Command = Order;
    type Reply = u64;
    type Query = Look;
    type Answer = Seen;

    fn command(&mut self, _: Order) -> u64 {
        unreachable!("the runtime calls command_in")
    }

    /// Answers the list's length.
    fn command_in(&mut self, context: &Context<'_>, Order { change, .. }: Order) -> u64 {
        match change {
            Change::Append(item) => {
                self.items.push(item);
                self.hash = chained(self.hash, item);
            }
            Change::Pad(bytes) => self.padding = vec![bytes as u8; bytes as usize],
        }
        let length = self.items.len() as u64;
        if let Some(observer) = context.environment::<Observer>() {
            observer.applied(context.index(), change, length, self.hash);
        }
        length
    }

    fn query(&self, _: Look) -> Seen {
        Seen { length: self.items.len() as u64, hash: self.hash }
    }
}
