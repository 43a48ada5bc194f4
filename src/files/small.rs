use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::Path;

/// What a regular file of at most `limit` bytes holds, without a byte order mark of UTF-8.
///
/// A pipe, a device, a socket or a folder is refused without being opened: opening a pipe waits for its other end, and a
/// device may have no end.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] if it is no regular file, [`ErrorKind::FileTooLarge`] if it is longer; others as the system
/// says.
pub fn read_small(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let irregular = || io::Error::new(ErrorKind::InvalidInput, "it is not a regular file");
    if !fs::metadata(path)?.is_file() {
        return Err(irregular());
    }
    let file = File::open(path)?;
    // Another one may have taken its place meanwhile.
    if !file.metadata()?.is_file() {
        return Err(irregular());
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        let limit = match limit >> 20 {
            0 => format!("{} KiB", limit >> 10),
            mib => format!("{mib} MiB"),
        };
        return Err(io::Error::new(ErrorKind::FileTooLarge, format!("it is longer than {limit}")));
    }
    if bytes.starts_with(MARK) {
        bytes.drain(..MARK.len());
    }
    Ok(bytes)
}

/// The byte order mark that some editors put before UTF-8.
const MARK: &[u8] = b"\xef\xbb\xbf";

/// As [`read_small`], of a file of text.
///
/// # Errors
/// Those of [`read_small`], and [`ErrorKind::InvalidData`] if it is not UTF-8.
pub fn read_text(path: &Path, limit: u64) -> io::Result<String> {
    let wrong = |reason: &str| io::Error::new(ErrorKind::InvalidData, reason);
    let bytes = read_small(path, limit)?;
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err(wrong("it is UTF-16: save it as UTF-8"));
    }
    String::from_utf8(bytes).map_err(|_| wrong("it is not text in UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_of_bounded_length_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let kind = |limit| read_small(&path, limit).map_err(|error| error.kind());
        fs::write(&path, "12345").unwrap();
        assert_eq!(kind(5), Ok(b"12345".to_vec()));
        assert_eq!(kind(4), Err(ErrorKind::FileTooLarge));
        assert_eq!(read_small(dir.path(), 4).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(read_small(&dir.path().join("g"), 4).unwrap_err().kind(), ErrorKind::NotFound);
        #[cfg(unix)]
        assert_eq!(read_small(Path::new("/dev/zero"), 4).unwrap_err().kind(), ErrorKind::InvalidInput);
    }

    #[test]
    fn byte_order_marks_are_no_text() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let read = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            read_text(&path, 100).map_err(|error| error.to_string())
        };
        assert_eq!(read(b"\xef\xbb\xbfa = 1"), Ok("a = 1".into()));
        assert!(read(b"\xff\xfea\0").unwrap_err().contains("UTF-16"));
        assert!(read(b"\xc3\x28").unwrap_err().contains("UTF-8"));
    }
}
