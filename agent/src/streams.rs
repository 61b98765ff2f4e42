// SPDX-License-Identifier: Apache-2.0
//! StreamService: bytes of processes, between the ring or the pipe and the host.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};

use crate::error::Error;
use crate::proto::stream_service_server::StreamService;
use crate::proto::{ReadOutputRequest, ReadOutputResponse, RunProcessRequest, WriteInputRequest, WriteInputResponse};
use crate::run;
use crate::service::Agent;
use crate::stdio::{CHUNK, OutputReader};

type Item = Result<ReadOutputResponse, Status>;

/// Pieces under way between the ring and HTTP/2: one being sent, one ready.
const AHEAD: usize = 2;

pub struct Receiver(mpsc::Receiver<Item>);

impl futures_core::Stream for Receiver {
    type Item = Item;
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Item>> {
        self.0.poll_recv(cx)
    }
}

#[tonic::async_trait]
impl StreamService for Agent {
    type ReadOutputStream = Receiver;
    type RunProcessStream = run::Responses;

    async fn run_process(
        &self,
        request: Request<Streaming<RunProcessRequest>>,
    ) -> Result<Response<run::Responses>, Status> {
        run::begin(self.clone(), request.into_inner()).await.map(Response::new)
    }

    async fn read_output(&self, request: Request<Streaming<ReadOutputRequest>>) -> Result<Response<Receiver>, Status> {
        let mut requests = request.into_inner();
        let first = requests.message().await?.ok_or_else(|| Error::invalid("no process was named"))?;
        let process = self.process(&first.container_id, &first.process_id)?;
        let reader = process.output.attach(first.from_offset)?;
        let (sender, receiver) = mpsc::channel(AHEAD);
        tokio::spawn(send_output(reader, requests, sender));
        Ok(Response::new(Receiver(receiver)))
    }

    async fn write_input(
        &self,
        request: Request<Streaming<WriteInputRequest>>,
    ) -> Result<Response<WriteInputResponse>, Status> {
        let mut requests = request.into_inner();
        let mut process = None;
        let mut accepted_bytes = 0;
        while let Some(piece) = requests.message().await? {
            if piece.data.len() > CHUNK {
                return Err(
                    Error::invalid(format!("{} bytes in one piece are more than {CHUNK}", piece.data.len())).into()
                );
            }
            let process = match &process {
                Some(process) => process,
                None => process.insert(self.process(&piece.container_id, &piece.process_id)?),
            };
            let written = process.input.write(&piece.data).await;
            accepted_bytes += written as u64;
            if written < piece.data.len() {
                // The process reads no more.
                break;
            }
            if piece.eof {
                process.input.close().await;
                break;
            }
        }
        Ok(Response::new(WriteInputResponse { accepted_bytes }))
    }
}

/// Until the end of the output, a later reader, or the end of the connection.
async fn send_output(mut reader: OutputReader, mut requests: Streaming<ReadOutputRequest>, sender: mpsc::Sender<Item>) {
    let mut listening = true;
    loop {
        tokio::select! {
            request = requests.message(), if listening => match request {
                Ok(Some(request)) => {
                    if let Err(error) = reader.acknowledge(request.acknowledged_offset) {
                        let _ = sender.send(Err(error.into())).await;
                        return;
                    }
                }
                Ok(None) => listening = false,
                Err(_) => return,
            },
            permit = sender.reserve() => {
                let Ok(permit) = permit else { return };
                tokio::select! {
                    chunk = reader.next() => match chunk {
                        None => {
                            permit.send(Err(Status::cancelled("a later ReadOutput took over")));
                            return;
                        }
                        Some(chunk) => {
                            let eof = chunk.eof;
                            permit.send(Ok(chunk.into()));
                            if eof {
                                return;
                            }
                        }
                    },
                    request = requests.message(), if listening => match request {
                        Ok(Some(request)) => {
                            if let Err(error) = reader.acknowledge(request.acknowledged_offset) {
                                permit.send(Err(error.into()));
                                return;
                            }
                        }
                        Ok(None) => listening = false,
                        Err(_) => return,
                    },
                    () = sender.closed() => return,
                }
            }
        }
    }
}
