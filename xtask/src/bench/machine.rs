//! What the machine did meanwhile: CPU time of this process, of another one, and of everybody.

use std::time::Duration;

/// The CPU time that this process has used, all threads together.
#[cfg(unix)]
pub fn own_cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Not measured here.
#[cfg(not(unix))]
pub fn own_cpu_time() -> Duration {
    Duration::ZERO
}

/// The CPU time that a process has used, in steps of hundredths of a second; zero where `/proc` does not tell it.
pub fn cpu_time_of(process: u32) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    parse_process(&text).unwrap_or_default()
}

/// Forgets the most memory that a process had, so that [`peak_memory_of`] counts from now on.
pub fn forget_peak_memory_of(process: u32) -> std::io::Result<()> {
    std::fs::write(format!("/proc/{process}/clear_refs"), "5")
}

/// The most memory that a process had, in bytes; `None` where `/proc` does not tell it.
pub fn peak_memory_of(process: u32) -> Option<u64> {
    parse_peak(&std::fs::read_to_string(format!("/proc/{process}/status")).ok()?)
}

/// The memory that a process has, in bytes; `None` where `/proc` does not tell it.
pub fn memory_of(process: u32) -> Option<u64> {
    parse_memory(&std::fs::read_to_string(format!("/proc/{process}/status")).ok()?, "VmRSS:")
}

/// `VmHWM:     1234 kB`.
fn parse_peak(text: &str) -> Option<u64> {
    parse_memory(text, "VmHWM:")
}

fn parse_memory(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// `id (name) state ...`: behind the name, which may hold anything, user and system time are the 12th and 13th.
fn parse_process(text: &str) -> Option<Duration> {
    let (_, fields) = text.rsplit_once(')')?;
    let times = fields.split_whitespace().skip(11).take(2).map(|field| field.parse::<u64>().ok());
    let hundredths: u64 = times.sum::<Option<u64>>()?;
    Some(Duration::from_millis(hundredths * 10))
}

/// Busy time of all cores since the start of the machine, and the number of cores; `None` where `/proc/stat` is not.
pub fn busy_time() -> Option<(Duration, usize)> {
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    parse(&text)
}

/// user, nice, system, (idle, iowait,) irq, softirq, steal: in hundredths of a second.
fn parse(text: &str) -> Option<(Duration, usize)> {
    let all = text.lines().find(|line| line.starts_with("cpu "))?;
    let fields: Vec<u64> = all.split_whitespace().skip(1).map_while(|field| field.parse().ok()).collect();
    let hundredths: u64 = [0, 1, 2, 5, 6, 7].iter().filter_map(|index| fields.get(*index)).sum();
    let cores = text.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu ")).count();
    Some((Duration::from_millis(hundredths * 10), cores))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_s_name_may_hold_anything() {
        let text = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 7 8 20 0 1 0 100";
        assert_eq!(parse_process(text), Some(Duration::from_secs(2)));
        assert_eq!(parse_process(""), None);
    }

    #[test]
    fn peak_memory_is_in_bytes() {
        assert_eq!(parse_peak("VmPeak:\t  9 kB\nVmHWM:\t    20 kB\nVmRSS:\t 3 kB\n"), Some(20_480));
        assert_eq!(parse_peak("VmRSS:\t 3 kB\n"), None);
        assert_eq!(parse_memory("VmHWM:\t 9 kB\nVmRSS:\t 3 kB\n", "VmRSS:"), Some(3_072));
    }

    #[test]
    fn idle_time_is_not_busy() {
        let text =
            "cpu  100 0 50 9000 900 1 2 3 0 0\ncpu0 50 0 25 4500 450 1 1 1 0 0\ncpu1 50 0 25 4500 450 0 1 2 0 0\n";
        assert_eq!(parse(text), Some((Duration::from_millis(1560), 2)));
        assert_eq!(parse("intr 1"), None);
    }
}
