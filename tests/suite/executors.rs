//! Which devices a test runs on: the same binary tests whatever is there.

use vcycle::device::Device;

/// Every executor of this build and machine.
pub fn all() -> Vec<Device> {
    vec![Device::Cpu]
}
