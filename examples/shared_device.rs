//! Computes on a GPU device that a host application opened: its handlers and limits stay as they are.
//!
//! ```sh
//! cargo run --release --example shared_device
//! ```

use mixlora::{Device, Tensor, wgpu};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let options = wgpu::RequestAdapterOptions::default();
    let Ok(adapter) = pollster::block_on(instance.request_adapter(&options)) else {
        println!("SKIPPED: there is no adapter");
        return Ok(());
    };
    let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor::default()))?;

    // Handles are cheap to clone: the host keeps its own and goes on rendering with them.
    let shared = Device::from_wgpu(&adapter, device.clone(), queue.clone())?;
    let x = Tensor::from_f32(&shared, &[4], &[1.0, 2.0, 3.0, 4.0])?.leaf();
    let gradients = x.mul(&x)?.sum()?.backward()?;
    let dx = gradients.get(&x).ok_or("x has no gradient")?.to_f32()?;
    println!("d(x x)/dx = {dx:?} on {}", shared.name());
    drop(shared);
    queue.submit([device.create_command_encoder(&Default::default()).finish()]);
    Ok(())
}
