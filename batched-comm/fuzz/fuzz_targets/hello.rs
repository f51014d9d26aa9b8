//! The first bytes of a connection, from either side.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| batched_comm::fuzzing::hello(bytes));
