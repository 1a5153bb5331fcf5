use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::symlink,
};

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

struct Notices(mpsc::Receiver<Instant>);

impl Notices {
    /// Waits for a notice of a change that began at `since` or later. Stragglers of an earlier change
    /// are skipped: a busy machine may stretch one over several notices.
    fn next(&mut self, since: Instant) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.0.try_recv() {
                Ok(at) if at >= since => return,
                Ok(_) => {}
                Err(mpsc::error::TryRecvError::Empty) => {
                    assert!(Instant::now() < deadline, "no notice");
                    thread::yield_now();
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Asserts that nothing but `probe` causes a notice, and that one only.
    fn none_but(&mut self, probe: impl FnOnce()) {
        assert!(self.0.try_recv().is_err(), "a notice without a cause");
        let since = Instant::now();
        probe();
        self.next(since);
    }
}

fn watch(path: &Path, extra: &[&Path]) -> (Watcher, Notices) {
    let extra = extra.iter().map(|path| path.to_path_buf()).collect();
    let (watcher, receiver) = Watcher::new(path, extra).unwrap();
    (watcher, Notices(receiver))
}

#[test]
fn in_place_write() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.yaml");
    fs::write(&file, "").unwrap();
    let (_watcher, mut notices) = watch(directory.path(), &[]);
    let since = Instant::now();
    fs::write(&file, "node: {name: a}").unwrap();
    notices.next(since);
    let since = Instant::now();
    fs::remove_file(&file).unwrap();
    notices.next(since);
}

#[test]
fn a_file_still_being_written_is_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.yaml");
    fs::write(&path, "node: {name: a}").unwrap();
    let (_watcher, mut notices) = watch(directory.path(), &[]);
    let since = Instant::now();
    let mut file = File::create(&path).unwrap();
    // Longer than a change may last, shorter than a write may.
    while since.elapsed() < LONGEST + QUIET {
        let early = notices.0.try_recv().is_ok();
        assert!(!early || since.elapsed() >= LONGEST_WRITE, "the truncated file was reported");
        thread::yield_now();
    }
    file.write_all(b"node: {name: b}").unwrap();
    drop(file);
    notices.next(since);
}

#[test]
fn an_editors_rename_over_is_one_change() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.yaml");
    fs::write(&file, "").unwrap();
    let (_watcher, mut notices) = watch(directory.path(), &[]);
    let since = Instant::now();
    let fresh = directory.path().join("a.yaml.new");
    fs::write(&fresh, "node: {name: b}").unwrap();
    fs::rename(&file, directory.path().join("a.yaml~")).unwrap();
    fs::rename(&fresh, &file).unwrap();
    fs::remove_file(directory.path().join("a.yaml~")).unwrap();
    notices.next(since);
    assert_eq!(fs::read_to_string(&file).unwrap(), "node: {name: b}");
}

/// As a Kubernetes volume does it.
fn volume(directory: &Path, version: &str, text: &str) {
    let version_dir = directory.join(version);
    fs::create_dir(&version_dir).unwrap();
    fs::write(version_dir.join("a.yaml"), text).unwrap();
    let link = directory.join("..data_tmp");
    symlink(version, &link).unwrap();
    fs::rename(&link, directory.join(VOLUME_LINK)).unwrap();
}

#[test]
fn a_volumes_symlink_swap() {
    for single_file in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        volume(directory.path(), "..1", "");
        let file = directory.path().join("a.yaml");
        symlink("..data/a.yaml", &file).unwrap();
        let watched = if single_file { file.as_path() } else { directory.path() };
        let (_watcher, mut notices) = watch(watched, &[]);
        let since = Instant::now();
        volume(directory.path(), "..2", "node: {name: b}");
        notices.next(since);
        let since = Instant::now();
        volume(directory.path(), "..3", "node: {name: c}");
        notices.next(since);
        assert_eq!(fs::read_to_string(&file).unwrap(), "node: {name: c}");
    }
}

#[test]
fn the_directory_itself_is_replaced() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("lb");
    fs::create_dir(&path).unwrap();
    let (_watcher, mut notices) = watch(&path, &[]);
    for round in 0..3 {
        let fresh = parent.path().join("fresh");
        fs::create_dir(&fresh).unwrap();
        let since = Instant::now();
        fs::rename(&path, parent.path().join(format!("old-{round}"))).unwrap();
        fs::rename(&fresh, &path).unwrap();
        notices.next(since);
        let since = Instant::now();
        fs::write(path.join("a.yaml"), "").unwrap();
        notices.next(since);
    }
}

#[test]
fn a_symlink_on_the_way_is_swapped() {
    let root = tempfile::tempdir().unwrap();
    for version in ["one", "two"] {
        fs::create_dir_all(root.path().join(version).join("lb")).unwrap();
    }
    let current = root.path().join("current");
    symlink("one", &current).unwrap();
    let (_watcher, mut notices) = watch(&current.join("lb"), &[]);
    let since = Instant::now();
    symlink("two", root.path().join("next")).unwrap();
    fs::rename(root.path().join("next"), &current).unwrap();
    notices.next(since);
    let since = Instant::now();
    fs::write(root.path().join("two/lb/a.yaml"), "").unwrap();
    notices.next(since);
}

#[test]
fn a_single_file_among_others() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.yaml");
    fs::write(&file, "").unwrap();
    let (_watcher, mut notices) = watch(&file, &[]);
    fs::write(directory.path().join("other"), "").unwrap();
    notices.none_but(|| fs::write(&file, "node: {name: b}").unwrap());
}

#[test]
fn directories_of_list_files_also_before_they_exist() {
    let root = tempfile::tempdir().unwrap();
    let config = root.path().join("lb");
    let lists = root.path().join("var/lists");
    fs::create_dir(&config).unwrap();
    let (watcher, mut notices) = watch(&config, &[&lists]);
    let since = Instant::now();
    fs::create_dir_all(&lists).unwrap();
    notices.next(since);
    let since = Instant::now();
    fs::write(lists.join("drop.txt"), "192.0.2.0/24").unwrap();
    notices.next(since);

    let more = root.path().join("more");
    fs::create_dir(&more).unwrap();
    let since = Instant::now();
    watcher.set_extra_dirs(vec![lists.clone(), more.clone()]).unwrap();
    notices.next(since);
    watcher.set_extra_dirs(vec![lists, more.clone()]).unwrap();
    let since = Instant::now();
    fs::write(more.join("x"), "").unwrap();
    notices.next(since);
}

#[test]
fn many_files_at_once_are_few_notices() {
    let directory = tempfile::tempdir().unwrap();
    let (watcher, mut notices) = watch(directory.path(), &[]);
    let since = Instant::now();
    for n in 0..200 {
        fs::write(directory.path().join(format!("{n}.yaml")), "").unwrap();
    }
    notices.next(since);
    drop(watcher);
    let mut more = 0;
    while notices.0.try_recv().is_ok() {
        more += 1;
    }
    assert!(more <= 1, "{more} notices were left");
}

#[test]
fn a_lost_event_counts_as_a_change() {
    let directory = tempfile::tempdir().unwrap();
    let (watcher, mut notices) = watch(directory.path(), &[]);
    let since = Instant::now();
    let lost = Event::new(EventKind::Other).set_flag(notify::event::Flag::Rescan);
    watcher.messages.send(Message::Event(since, Ok(lost))).unwrap();
    notices.next(since);
}

#[test]
fn reading_is_no_change() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.yaml");
    fs::write(&file, "").unwrap();
    let (_watcher, mut notices) = watch(directory.path(), &[]);
    fs::read(&file).unwrap();
    fs::read_dir(directory.path()).unwrap().for_each(drop);
    notices.none_but(|| fs::write(&file, "node: {name: b}").unwrap());
}
