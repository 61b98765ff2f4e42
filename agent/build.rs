// SPDX-License-Identifier: Apache-2.0
//! Generates the server side of the contract in ../proto.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let contract = "../proto/hyper/agent/v1/agent.proto";
    println!("cargo:rerun-if-changed={contract}");
    tonic_prost_build::configure()
        .build_client(std::env::var_os("CARGO_FEATURE_CLIENT").is_some())
        .build_transport(false)
        .bytes(".hyper.agent.v1.ReadOutputResponse.data")
        .bytes(".hyper.agent.v1.WriteInputRequest.data")
        .compile_protos(&[contract], &["../proto"])?;
    Ok(())
}
