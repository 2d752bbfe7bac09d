//! Generates the gRPC types from `proto/` with a compiler written in Rust: no `protoc` needed.

use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    generate("mainstem/v1/mainstem.proto", "mainstem_descriptor.bin")?;
    generate("apache/rocketmq/v2/service.proto", "rocketmq_descriptor.bin")
}

/// The types of `proto` and of what it imports, and a file of all their descriptors.
fn generate(proto: &str, descriptor_file: &str) -> Result<(), Box<dyn Error>> {
    let descriptors = protox::compile([proto], ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join(descriptor_file), prost::Message::encode_to_vec(&descriptors))?;
    tonic_prost_build::configure()
        .bytes(".")
        .codec_path("crate::grpc::codec::Bounded")
        .compile_fds(descriptors)?;
    Ok(())
}
