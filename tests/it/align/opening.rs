//! How often the inputs of an aligned merge are opened.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

use super::mapped::set;
use crate::support::program::run;

/// Openings of one file, counted by the system.
struct Openings(OwnedFd);

impl Openings {
    fn of(path: &Path) -> Self {
        let queue = inotify::init(CreateFlags::NONBLOCK).expect("a queue of events");
        // Events that are equal to the one before them are dropped: with the others between,
        // openings seldom are.
        let events = WatchFlags::OPEN | WatchFlags::ACCESS | WatchFlags::CLOSE;
        inotify::add_watch(&queue, path, events).expect("a file to watch");
        Self(queue)
    }

    fn count(self) -> usize {
        let mut memory = [MaybeUninit::uninit(); 1 << 14];
        let mut reader = inotify::Reader::new(&self.0, &mut memory);
        let mut count = 0;
        loop {
            match reader.next() {
                Ok(event) => {
                    assert!(
                        !event.events().contains(ReadFlags::QUEUE_OVERFLOW),
                        "events were lost"
                    );
                    count += usize::from(event.events().contains(ReadFlags::OPEN));
                }
                Err(Errno::AGAIN) => return count,
                Err(error) => panic!("events cannot be read: {error}"),
            }
        }
    }
}

/// Openings of the weights of the second of `count` models while all are brought to the first, or
/// `together`, and merged.
fn openings(count: usize, together: bool) -> usize {
    let stored = set(count);
    let dir = stored.dir.path();
    let models: Vec<String> = (0..count).map(|model| format!("m{model}")).collect();
    let openings = Openings::of(&dir.join("m1/model.safetensors"));
    let mut args = vec!["merge"];
    args.extend(models.iter().map(String::as_str));
    args.extend([
        "--align", "weights", "--method", "linear", "--out", "out", "--quiet", "-j", "1",
    ]);
    if together {
        args.extend(["--align-reference", "mean"]);
    }
    run(dir, args).ok();
    openings.count()
}

#[test]
fn an_input_is_opened_as_often_among_many_as_among_few() {
    for together in [false, true] {
        let counts = [3, 5].map(|count| openings(count, together));
        assert_eq!(counts[0], counts[1], "together: {together}");
        assert!(
            (3..=16).contains(&counts[0]),
            "together: {together}, {counts:?}"
        );
    }
}
