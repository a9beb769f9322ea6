//! Untrusted bytes into `entries::header`.
#![no_main]

#[path = "../entries.rs"]
mod entries;
#[path = "../folder.rs"]
mod folder;

libfuzzer_sys::fuzz_target!(|data: &[u8]| folder::with_folder(|folder| entries::header(
    data, folder
)));
