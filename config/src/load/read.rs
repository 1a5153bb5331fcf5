//! Reads files that changed, and only those.

use std::{
    fs::{self, File, Metadata},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use siphasher::sip128::{Hasher128, SipHasher13};

/// A file as it was when it was read.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    stamp: Stamp,
    /// The file had been left alone for long enough that another write would have another stamp.
    settled: bool,
    hash: u128,
}

/// What changes when a file does.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl Seen {
    /// A file that was not there.
    pub(super) fn nothing() -> Self {
        let stamp = Stamp { device: 0, inode: 0, size: 0, modified: (0, 0), changed: (0, 0) };
        Self { stamp, settled: false, hash: 0 }
    }
}

/// Time stamps of files advance with the kernel's tick, 10 ms at most: two writes of the same size
/// within one look alike. A file read so soon after its last change is read again next time.
const TICK: Duration = Duration::from_millis(25);

/// Why a file cannot be used: what is wrong, and the remedy.
pub(super) struct Unreadable {
    pub(super) message: String,
    pub(super) help: String,
}

/// Reads the file unless it is as `seen`. `None`: it is.
pub(super) fn read_if_changed(
    path: &Path,
    seen: Option<&mut Seen>,
    max_bytes: u64,
) -> Result<Option<(Vec<u8>, Seen)>, Unreadable> {
    let unreadable = |error: io::Error| unreadable(path, &error);
    let now = SystemTime::now();
    let metadata = fs::metadata(path).map_err(unreadable)?;
    check(path, &metadata, max_bytes)?;
    if let Some(seen) = &seen
        && seen.settled
        && seen.stamp == Stamp::of(&metadata)
    {
        return Ok(None);
    }

    let mut file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    check(path, &metadata, max_bytes)?;
    let stamp = Stamp::of(&metadata);
    let mut bytes = Vec::with_capacity(usize::try_from(stamp.size).unwrap_or(0) + 1);
    file.by_ref().take(max_bytes).read_to_end(&mut bytes).map_err(unreadable)?;
    let unchanged = Stamp::of(&file.metadata().map_err(unreadable)?) == stamp;
    let settled = unchanged && is_old(stamp.changed, now);
    let mut hasher = SipHasher13::new();
    std::hash::Hasher::write(&mut hasher, &bytes);
    let hash = hasher.finish128().as_u128();

    let fresh = Seen { stamp, settled, hash };
    match seen {
        Some(seen) if seen.hash == hash => {
            *seen = fresh;
            Ok(None)
        }
        _ => Ok(Some((bytes, fresh))),
    }
}

fn is_old((seconds, nanoseconds): (i64, i64), now: SystemTime) -> bool {
    let (Ok(seconds), Ok(nanoseconds)) = (u64::try_from(seconds), u32::try_from(nanoseconds))
    else {
        return true;
    };
    let changed = UNIX_EPOCH + Duration::new(seconds, nanoseconds);
    now.duration_since(changed).is_ok_and(|age| age >= TICK)
}

fn check(path: &Path, metadata: &Metadata, max_bytes: u64) -> Result<(), Unreadable> {
    if metadata.is_dir() {
        return Err(Unreadable {
            message: format!("{} is a directory, not a file", path.display()),
            help: "rename it, or move it elsewhere".to_owned(),
        });
    }
    if !metadata.is_file() {
        return Err(Unreadable {
            message: format!("{} is not a regular file", path.display()),
            help: "replace it by a file".to_owned(),
        });
    }
    if metadata.size() > max_bytes {
        return Err(Unreadable {
            message: format!("{} has {} bytes", path.display(), metadata.size()),
            help: format!("allowed: at most {max_bytes}"),
        });
    }
    Ok(())
}

/// Says why a file or directory cannot be read, and what mends it.
pub(super) fn unreadable(path: &Path, error: &io::Error) -> Unreadable {
    let shown = path.display();
    let dangling = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink());
    let help = match error.kind() {
        io::ErrorKind::NotFound if dangling => {
            "it is a symbolic link to something that is not there: mend or remove the link"
                .to_owned()
        }
        io::ErrorKind::NotFound => "create it, or correct the path".to_owned(),
        io::ErrorKind::PermissionDenied => {
            format!("let the daemon's user read it: chmod a+r {shown}, and a+x on its directories")
        }
        _ => "check the file system".to_owned(),
    };
    Unreadable { message: format!("cannot read {shown}: {error}"), help }
}
