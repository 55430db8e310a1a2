//! How much memory there is to be had.
//!
//! Comes in: what the kernel says of the machine and of the control group. Goes out: a number of bytes, or nothing where
//! the kernel says nothing. Never here: taking memory.

use std::fs;

/// A quarter of what the machine has, or the control group if it has less.
pub(crate) fn quarter() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| total_bytes(&text));
    let group = fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let group = group.and_then(|text| text.trim().parse().ok());
    let least = machine.into_iter().chain(group).min()?;
    Some(least / 4)
}

/// The line of the kernel's table that says how much there is in all.
fn total_bytes(table: &str) -> Option<u64> {
    let line = table
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn total_is_read_from_its_line() {
        let table = "MemFree:    17 kB\nMemTotal:       24576 kB\n";
        assert_eq!(total_bytes(table), Some(24 << 20));
        assert_eq!(total_bytes("MemTotal: many\n"), None);
        assert_eq!(total_bytes(""), None);
    }
}
