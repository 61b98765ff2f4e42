// SPDX-License-Identifier: Apache-2.0
//! Time is the test's own here, but for the blocking thread, which comes to its waits when it does.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::files::Layers;

const COUNT: usize = 6;
/// Of real time, for the thread.
const PATIENT_TURNS: usize = 1000;

fn root() -> Files {
    Files::new(std::fs::File::open("/").unwrap().into(), Layers::default())
}

fn send_all(_: &Pass, wire: &mut Wire<usize>) -> Result<()> {
    (0..COUNT).try_for_each(|number| wire.send(number))
}

async fn let_pass(pieces: &Pieces<usize>) {
    while pieces.0.len() < AHEAD && !pieces.0.is_closed() {
        tokio::task::yield_now().await;
    }
    for _ in 0..PATIENT_TURNS {
        tokio::time::advance(STALL).await;
        std::thread::yield_now();
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_is_waited_for_as_long_as_it_is_there() {
    let files = root();
    let mut pieces = stream(files.enter().unwrap(), None, send_all).unwrap();
    for number in 0..COUNT {
        let_pass(&pieces).await;
        assert_eq!(pieces.0.recv().await.unwrap().unwrap(), number);
    }
    assert!(pieces.0.recv().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn nobody_stands_still_for_a_reader_who_does_nothing_for_a_minute() {
    let ended = Arc::new(AtomicBool::new(false));
    let told = ended.clone();
    let files = root();
    let mut pieces = stream(files.enter().unwrap(), Some(STALL), move |pass, wire| {
        let sent = send_all(pass, wire);
        told.store(true, Ordering::SeqCst);
        sent
    })
    .unwrap();
    for _ in 0..PATIENT_TURNS {
        if ended.load(Ordering::SeqCst) {
            break;
        }
        let_pass(&pieces).await;
    }
    for number in 0..AHEAD {
        assert_eq!(pieces.0.recv().await.unwrap().unwrap(), number);
    }
    let status = pieces.0.recv().await.unwrap().unwrap_err();
    assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
    assert!(pieces.0.recv().await.is_none());
}

#[tokio::test]
async fn the_end_of_a_reader_is_the_end_of_the_reading() {
    let (tell, heard) = tokio::sync::oneshot::channel();
    let files = root();
    let pieces = stream(files.enter().unwrap(), None, move |pass, wire| {
        let sent = send_all(pass, wire);
        let _ = tell.send(sent.clone());
        sent
    })
    .unwrap();
    drop(pieces);
    assert_eq!(heard.await.unwrap().unwrap_err().kind, Kind::Aborted);
}
