//! The tasks of the daemon: each runs until all are told to stop, and the end of any of them ends the rest.

use std::{future::Future, time::Duration};

use anyhow::{Context as _, bail};
use tokio::{task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

/// How long tasks may take to end.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Default)]
pub(super) struct Tasks {
    running: JoinSet<anyhow::Result<&'static str>>,
    stop: CancellationToken,
}

impl Tasks {
    /// What tells a task to stop.
    pub(super) fn stop(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Starts one; `what` it is, for people.
    pub(super) fn spawn(
        &mut self,
        what: &'static str,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        self.running.spawn(async move { task.await.map(|()| what) });
    }

    /// Starts one that cannot fail.
    pub(super) fn spawn_sure(
        &mut self,
        what: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        self.spawn(what, async move {
            task.await;
            Ok(())
        });
    }

    /// Waits for `shutdown` or for a task to end, calls `ending`, and stops them all.
    ///
    /// # Errors
    /// A task that ended by itself, and why.
    pub(super) async fn run(
        mut self,
        shutdown: CancellationToken,
        ending: impl FnOnce(),
    ) -> anyhow::Result<()> {
        let ended = tokio::select! {
            () = shutdown.cancelled() => None,
            ended = self.running.join_next() => ended,
        };
        ending();
        self.stop.cancel();
        let all = async { while self.running.join_next().await.is_some() {} };
        if timeout(SHUTDOWN, all).await.is_err() {
            tracing::warn!("some tasks did not end in time");
        }
        match ended {
            None => Ok(()),
            Some(Ok(Ok(what))) => bail!("{what} ended unexpectedly"),
            Some(Ok(Err(error))) => Err(error),
            Some(Err(error)) => Err(error).context("a task ended unexpectedly"),
        }
    }
}
