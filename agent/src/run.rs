// SPDX-License-Identifier: Apache-2.0
//! RunProcess: an exec'd process from its birth until it is forgotten, as one call. Each call saved is a stream of HTTP/2 less,
//! of which an emulated guest notices every frame.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tonic::{Status, Streaming};

use crate::error::{Error, Result};
use crate::process::Process;
use crate::proto::run_process_response::Kind;
use crate::proto::{ExecProcessResponse, ExitStatus, RunProcessRequest, RunProcessResponse};
use crate::service::Agent;
use crate::stdio::OutputReader;

type Step = Pin<Box<dyn Future<Output = Option<(std::result::Result<RunProcessResponse, Status>, Run)>> + Send>>;

/// The responses, each made when HTTP/2 can take it: no task and no queue of their own.
pub struct Responses(Option<Step>);

impl futures_core::Stream for Responses {
    type Item = std::result::Result<RunProcessResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(step) = &mut self.0 else { return Poll::Ready(None) };
        let Poll::Ready(done) = step.as_mut().poll(cx) else { return Poll::Pending };
        let (item, next) = match done {
            Some((Ok(response), run)) => (Some(Ok(response)), Some(Box::pin(run.step()) as Step)),
            Some((Err(status), _)) => (Some(Err(status)), None),
            None => (None, None),
        };
        self.0 = next;
        Poll::Ready(item)
    }
}

/// Answers when the process was executed, or could not be: then that is its exit.
pub async fn begin(agent: Agent, mut requests: Streaming<RunProcessRequest>) -> std::result::Result<Responses, Status> {
    let exec = requests.message().await?.and_then(|first| first.exec);
    let exec = exec.ok_or_else(|| Error::invalid("no process was given"))?;
    let container = exec.container_id.clone();
    let process = agent.exec(exec).await?.claim()?;
    let output = Some(process.output.attach(0)?);
    let run = Run { agent, container, process, requests, output, started: false, exited: false, listening: true };
    Ok(Responses(Some(Box::pin(run.step()))))
}

struct Run {
    agent: Agent,
    container: String,
    process: Arc<Process>,
    requests: Streaming<RunProcessRequest>,
    /// Until its end was sent.
    output: Option<OutputReader>,
    started: bool,
    /// The exit was sent.
    exited: bool,
    /// The request stream is open.
    listening: bool,
}

enum News {
    /// What it acknowledges; None at the end of the requests.
    Request(Option<u64>),
    Exit(ExitStatus),
    Output(Option<crate::stdio::Chunk>),
}

impl Run {
    /// The next response; None at the end of the call.
    async fn step(mut self) -> Option<(std::result::Result<RunProcessResponse, Status>, Self)> {
        if !self.started {
            self.started = true;
            let pid = self.process.pid;
            return Some((Ok(respond(Kind::Started(ExecProcessResponse { pid }))), self));
        }
        loop {
            if self.exited && !self.listening {
                let forgotten = self.agent.forget(&self.container, &self.process.id);
                return forgotten.err().map(|error| (Err(error.into()), self));
            }
            let news = match self.news().await {
                Ok(news) => news,
                Err(error) => return Some((Err(error), self)),
            };
            match self.hear(news) {
                Ok(Some(response)) => return Some((Ok(response), self)),
                Ok(None) => {}
                Err(error) => return Some((Err(error.into()), self)),
            }
        }
    }

    /// Cancel-safe.
    async fn news(&mut self) -> std::result::Result<News, Status> {
        let Self { process, requests, output, exited, listening, .. } = self;
        // In this order: what was written before the exit goes before it, and a flood does not keep acknowledgements out.
        tokio::select! {
            biased;
            request = requests.message(), if *listening => Ok(News::Request(request?.map(|request| request.acknowledged_offset))),
            chunk = next(output) => Ok(News::Output(chunk)),
            exit = process.wait(), if !*exited => Ok(News::Exit(exit?)),
        }
    }

    fn hear(&mut self, news: News) -> Result<Option<RunProcessResponse>> {
        match news {
            News::Request(None) => self.listening = false,
            News::Request(Some(offset)) => {
                if let Some(output) = &self.output {
                    output.acknowledge(offset)?;
                }
            }
            News::Exit(exit) => {
                self.exited = true;
                return Ok(Some(respond(Kind::Exit(exit))));
            }
            // Somebody reads it by another call: here it stops.
            News::Output(None) => self.output = None,
            News::Output(Some(chunk)) => {
                if chunk.eof {
                    self.output = None;
                }
                return Ok(Some(respond(Kind::Output(chunk.into()))));
            }
        }
        Ok(None)
    }
}

async fn next(output: &mut Option<OutputReader>) -> Option<crate::stdio::Chunk> {
    match output {
        Some(output) => output.next().await,
        None => std::future::pending().await,
    }
}

fn respond(kind: Kind) -> RunProcessResponse {
    RunProcessResponse { kind: Some(kind) }
}
