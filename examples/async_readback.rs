//! Reads a result without blocking: the future polls the device, so that it runs on any executor, beside other work.
//!
//! ```sh
//! cargo run --release --example async_readback
//! ```

use mixlora::{Device, Tensor};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = match Device::gpu() {
        Ok(device) => device,
        Err(e) => {
            println!("SKIPPED: {e}");
            return Ok(());
        }
    };
    let x = Tensor::full(&device, &[512, 512], 0.5)?;
    let mut y = x.clone();
    for _ in 0..20 {
        y = y.matmul_nt(&x)?.scale(1.0 / 128.0)?;
    }
    // A frame loop: draw a frame, look whether the numbers are here, go on.
    let mut read = pin!(y.read_async());
    let mut context = Context::from_waker(Waker::noop());
    let mut frames = 0;
    let values = loop {
        match read.as_mut().poll(&mut context) {
            Poll::Ready(values) => break values?,
            Poll::Pending => frames += 1,
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    };
    println!(
        "{} values after {frames} frames, the first is {}, on {}",
        values.len(),
        values[0],
        device.name()
    );
    Ok(())
}
