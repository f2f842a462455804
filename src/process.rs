//! The running proxy as a process: its pid file, and the signal that makes it read its configuration again.
//!
//! A process id alone proves nothing: the process may have ended and another one may have its id. So a process is signalled
//! only if its program is this one and its command line is that of a serving proxy.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::{cli, config::wording::plain, sys};

/// A file that holds this process's id and a newline; removed on drop, unless another process has replaced it.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
    text: String,
}

impl PidFile {
    /// Writes the file atomically: a reader finds a complete id, or the previous content.
    ///
    /// # Errors
    /// The folder is missing or cannot be written.
    pub fn write(path: &Path) -> Result<PidFile> {
        let text = format!("{}\n", std::process::id());
        let mut draft = path.as_os_str().to_owned();
        draft.push(format!(".{}", text.trim_end()));
        let draft = PathBuf::from(draft);
        let write = || -> io::Result<()> {
            // an existing file or link with this name must not be followed
            File::create_new(&draft)?.write_all(text.as_bytes())?;
            fs::rename(&draft, path)
        };
        if let Err(error) = write() {
            drop(fs::remove_file(&draft));
            return Err(error).with_context(|| format!("writing the pid file {}", path.display()));
        }
        Ok(PidFile {
            path: path.to_owned(),
            text,
        })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if fs::read_to_string(&self.path).is_ok_and(|text| text == self.text) {
            drop(fs::remove_file(&self.path));
        }
    }
}

/// Tells a running proxy to read its configuration again: the one whose id is in `pid_file`, else process 1. `own` is the
/// name by which this program was called. Returns the id of the process that was signalled.
///
/// # Errors
/// There is no such file or process, or the process is not a serving lean-proxy: then no signal is sent.
pub fn reload(pid_file: Option<&Path>, own: &OsStr) -> Result<i32> {
    let pid = match pid_file {
        Some(path) => read(path)?,
        None => 1,
    };
    is_serving(pid, own).map_err(|reason| match pid_file {
        Some(path) => anyhow!("{}: {reason}; no signal was sent", path.display()),
        None => anyhow!(
            "{reason}; no signal was sent. Outside of a container use --pid-file FILE, with which the proxy must have been started"
        ),
    })?;
    sys::hang_up(pid).with_context(|| format!("signalling process {pid}"))?;
    Ok(pid)
}

fn read(path: &Path) -> Result<i32> {
    let name = path.display();
    let text = fs::read_to_string(path).map_err(|error| {
        let reason = plain(&error);
        anyhow!(
            "{name}: {reason}: is a lean-proxy running that was started with --pid-file {name}?"
        )
    })?;
    match text.trim().parse() {
        Ok(pid) if pid > 0 => Ok(pid),
        _ => bail!("{name}: does not hold a process id"),
    }
}

/// Checks that a process runs this program and serves; the error says why not.
fn is_serving(pid: i32, own: &OsStr) -> Result<(), String> {
    let folder = PathBuf::from(format!("/proc/{pid}"));
    let line =
        fs::read(folder.join("cmdline")).map_err(|_| format!("there is no process {pid}"))?;
    let is_ours = program(&folder) == program(Path::new("/proc/self"));
    if is_ours && cli::served(&line, own).is_some() {
        return Ok(());
    }
    let name = fs::read_to_string(folder.join("comm")).unwrap_or_default();
    Err(format!(
        "process {pid} ({}) is not a serving lean-proxy",
        name.trim_end()
    ))
}

/// The name of a process's program: that of its file, or, where that may not be read (another user's process), the name
/// that the kernel keeps.
fn program(folder: &Path) -> Option<String> {
    let cut = |name: &str| name.get(..COMM).unwrap_or(name).to_owned();
    let file = fs::read_link(folder.join("exe")).ok();
    let name = file.as_deref().and_then(Path::file_name);
    // the kernel marks a file that was replaced since
    let name = name.map(|name| {
        name.to_string_lossy()
            .trim_end_matches(" (deleted)")
            .to_owned()
    });
    let name = name.or_else(|| fs::read_to_string(folder.join("comm")).ok())?;
    Some(cut(name.trim_end()))
}

/// Bytes of a process's name that the kernel keeps (`TASK_COMM_LEN` without its NUL).
const COMM: usize = 15;

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("lean-proxy-{}-{name}", std::process::id()))
    }

    #[test]
    fn a_pid_file_exists_as_long_as_its_process() {
        let path = file("pid");
        fs::write(&path, "stale").unwrap();
        let written = PidFile::write(&path).unwrap();
        let own = format!("{}\n", std::process::id());
        assert_eq!(fs::read_to_string(&path).unwrap(), own);
        drop(written);
        assert!(!path.exists());
        let written = PidFile::write(&path).unwrap();
        fs::write(&path, "1\n").unwrap();
        drop(written);
        assert_eq!(fs::read_to_string(&path).unwrap(), "1\n", "another's");
        fs::remove_file(&path).unwrap();
        let error = PidFile::write(Path::new("/nonexistent/pid")).unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains("/nonexistent/pid"), "{error}");
    }

    #[test]
    fn no_other_process_is_signalled() {
        let path = file("others");
        let own = std::env::current_exe().unwrap();
        let own = own.as_os_str();
        for (text, expected) in [
            ("", "does not hold a process id"),
            ("0\n", "does not hold a process id"),
            ("-1\n", "does not hold a process id"),
            ("x\n", "does not hold a process id"),
            ("2147483647\n", "there is no process 2147483647"),
        ] {
            fs::write(&path, text).unwrap();
            let error = format!("{:#}", reload(Some(&path), own).unwrap_err());
            assert!(error.contains(expected), "{text}: {error}");
        }
        let mut other = std::process::Command::new("/bin/sh")
            .args(["-c", "read line"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        fs::write(&path, other.id().to_string()).unwrap();
        let error = format!("{:#}", reload(Some(&path), own).unwrap_err());
        assert!(error.contains("is not a serving lean-proxy"), "{error}");
        drop(other.stdin.take());
        assert!(other.wait().unwrap().code().is_some(), "no signal ended it");
        fs::remove_file(&path).unwrap();
        let missing = format!("{:#}", reload(Some(&path), own).unwrap_err());
        assert!(missing.contains("--pid-file"), "{missing}");
    }
}
