// SPDX-License-Identifier: Apache-2.0

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use super::*;

const LONG: Duration = Duration::from_secs(3600);
const DEADLINE: Duration = Duration::from_secs(20);

/// A file system that is frozen when the test lets it be.
#[derive(Clone, Default)]
struct Recorded(Arc<Record>);

#[derive(Default)]
struct Record {
    gate: Mutex<Option<mpsc::Receiver<()>>>,
    frozen: AtomicUsize,
    thawed: AtomicUsize,
    /// How many thaws are to fail yet.
    failures: AtomicUsize,
}

impl Brake for Recorded {
    fn freeze(&self, _: &Path) -> Result<OwnedFd> {
        let gate = self.0.gate.lock().unwrap().take();
        if let Some(gate) = gate {
            gate.recv_timeout(DEADLINE).unwrap();
        }
        self.0.frozen.fetch_add(1, Ordering::SeqCst);
        Ok(std::fs::File::open("/dev/null").unwrap().into())
    }

    fn thaw(&self, _: BorrowedFd<'_>) -> std::io::Result<()> {
        let taken = self.0.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if taken.is_ok() {
            return Err(std::io::Error::from_raw_os_error(libc::EIO));
        }
        self.0.thawed.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

impl Recorded {
    fn counts(&self) -> (usize, usize) {
        (self.0.frozen.load(Ordering::SeqCst), self.0.thawed.load(Ordering::SeqCst))
    }
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(DEADLINE, async {
        while !is_so() {
            tokio::task::yield_now().await;
        }
    });
    assert!(waited.await.is_ok(), "{what}");
}

fn freeze(volumes: &StillVolumes<Recorded>, timeout: Duration) -> impl Future<Output = Result<()>> + use<> {
    let volumes = volumes.clone();
    async move { volumes.freeze("disk".to_owned(), PathBuf::from("/"), timeout).await }
}

#[tokio::test]
async fn what_stands_still_does_so_until_it_is_thawed_and_once() {
    let brake = Recorded::default();
    let volumes = StillVolumes::by(brake.clone());
    freeze(&volumes, LONG).await.unwrap();
    assert!(freeze(&volumes, LONG).await.is_err());
    assert!(volumes.thaw("disk").await.unwrap());
    assert!(!volumes.thaw("disk").await.unwrap());
    assert_eq!(brake.counts(), (1, 1));
}

#[tokio::test]
async fn its_time_is_over_by_itself() {
    let brake = Recorded::default();
    let volumes = StillVolumes::by(brake.clone());
    freeze(&volumes, Duration::from_millis(1)).await.unwrap();
    until("it is thawed", || volumes.held().is_empty()).await;
    assert_eq!(brake.counts(), (1, 1));
    assert!(!volumes.thaw("disk").await.unwrap());
}

#[tokio::test]
async fn a_freeze_that_was_given_up_and_happens_all_the_same_is_undone_at_once() {
    let brake = Recorded::default();
    let volumes = StillVolumes::by(brake.clone());
    let (open, gate) = mpsc::channel();
    *brake.0.gate.lock().unwrap() = Some(gate);
    let freezing = tokio::spawn(freeze(&volumes, LONG));
    until("it is being frozen", || !volumes.held().is_empty()).await;
    assert!(!volumes.thaw("disk").await.unwrap());
    open.send(()).unwrap();
    assert!(freezing.await.unwrap().is_err());
    until("it is thawed", || volumes.held().is_empty()).await;
    assert_eq!(brake.counts(), (1, 1));
    freeze(&volumes, LONG).await.unwrap();
}

#[tokio::test]
async fn what_could_not_be_thawed_is_tried_again_when_asked_and_by_itself() {
    let brake = Recorded::default();
    let volumes = StillVolumes::by(brake.clone());
    brake.0.failures.store(1, Ordering::SeqCst);
    freeze(&volumes, LONG).await.unwrap();
    assert!(volumes.thaw("disk").await.is_err());
    assert!(volumes.thaw("disk").await.unwrap());

    brake.0.failures.store(1, Ordering::SeqCst);
    freeze(&volumes, Duration::from_millis(1)).await.unwrap();
    until("it is thawed", || volumes.held().is_empty()).await;
    assert_eq!(brake.counts(), (2, 2));
}
