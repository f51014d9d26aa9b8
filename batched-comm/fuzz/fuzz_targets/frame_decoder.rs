//! The bytes of a lane after its hello.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| batched_comm::fuzzing::frame_decoder(bytes));
