//! Processes inside namespaces, with their output kept, ended on drop.

use std::{
    io::{BufRead as _, BufReader, Read},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::netns::Namespace;

/// A running process; killed on drop.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    log: Log,
}

impl Process {
    /// Starts `command` in `namespace`. Its output is kept in `log`, which may hold that of earlier
    /// processes already.
    ///
    /// # Errors
    ///
    /// The program is missing.
    pub fn spawn(namespace: &Namespace, mut command: Command, log: &Log) -> anyhow::Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        namespace.put(&mut command);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {name}"))?;
        log.opened();
        if let Some(out) = child.stdout.take() {
            log.read(out, false);
        }
        if let Some(err) = child.stderr.take() {
            log.read(err, true);
        }
        Ok(Self { child, name, log: log.clone() })
    }

    /// What it printed.
    #[must_use]
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    ///
    /// # Errors
    ///
    /// It has ended already.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let id = i32::try_from(self.child.id()).context("process ids fit")?;
        kill(Pid::from_raw(id), signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// Sends `signal` and waits for the end. What it printed is complete afterwards.
    ///
    /// # Errors
    ///
    /// It has not ended within ten seconds; it is killed then.
    pub fn end(&mut self, signal: Signal) -> anyhow::Result<ExitStatus> {
        self.signal(signal)?;
        // The end of its output comes with the end of the process, and can be awaited with a limit.
        if self.log.wait_closed(Duration::from_secs(10)).is_err() {
            self.child.kill()?;
            self.child.wait()?;
            bail!("{} did not end within 10 s of {signal}", self.name);
        }
        Ok(self.child.wait()?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Lines of output, which others can wait for.
#[derive(Clone, Debug, Default)]
pub struct Log {
    inner: Arc<(Mutex<Lines>, Condvar)>,
}

#[derive(Debug, Default)]
struct Lines {
    lines: Vec<String>,
    /// Some process's error output is open.
    open: bool,
}

impl Log {
    /// All lines so far.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.lock().lines.clone()
    }

    /// Adds a line that is not the process's own.
    pub fn note(&self, line: &str) {
        self.lock().lines.push(line.to_owned());
        self.inner.1.notify_all();
    }

    /// Waits for a line that contains `text`, from the line with index `from` on.
    ///
    /// # Errors
    ///
    /// The process ended, or `limit` passed, without one.
    pub fn wait_line(&self, text: &str, from: usize, limit: Duration) -> anyhow::Result<String> {
        let found =
            |state: &Lines| state.lines.iter().skip(from).find(|line| line.contains(text)).cloned();
        let state = self.wait(limit, |state| found(state).is_some() || !state.open);
        let all = state.lines.join("\n");
        found(&state).with_context(|| format!("no line with {text:?} in\n{all}"))
    }

    fn wait_closed(&self, limit: Duration) -> anyhow::Result<()> {
        let state = self.wait(limit, |state| !state.open);
        if state.open { bail!("still running") } else { Ok(()) }
    }

    fn wait(&self, limit: Duration, done: impl Fn(&Lines) -> bool) -> MutexGuard<'_, Lines> {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        while !done(&state) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.inner.1.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state
    }

    fn opened(&self) {
        self.lock().open = true;
    }

    /// Keeps reading until the end; `last`: the end of this stream is the end of the process.
    fn read(&self, stream: impl Read + Send + 'static, last: bool) {
        let log = self.clone();
        thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                log.lock().lines.push(line);
                log.inner.1.notify_all();
            }
            if last {
                log.lock().open = false;
                log.inner.1.notify_all();
            }
        });
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.inner.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
