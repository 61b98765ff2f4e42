// SPDX-License-Identifier: Apache-2.0
//! Numbers of the guest as a whole, and of the agent itself, from /proc.

use crate::proto::GetStatsResponse;

const NS_PER_TICK: u64 = 10_000_000;

pub fn guest() -> GetStatsResponse {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let meminfo = read("/proc/meminfo");
    let kib = |key: &str| {
        let value = meminfo.lines().find_map(|line| line.strip_prefix(key));
        value.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
    };
    let (io_read_bytes, io_write_bytes) = disk_bytes(&read("/proc/diskstats"));
    let loadavg = read("/proc/loadavg");
    let tasks = loadavg.split_whitespace().nth(3).and_then(|field| field.split_once('/')?.1.parse().ok());
    GetStatsResponse {
        cpu_usage_ns: busy_ticks(&read("/proc/stat")) * NS_PER_TICK,
        memory_usage_bytes: kib("MemTotal:").saturating_sub(kib("MemAvailable:")),
        memory_limit_bytes: kib("MemTotal:"),
        pids: tasks.unwrap_or(0),
        io_read_bytes,
        io_write_bytes,
        agent_rss_bytes: 0,
    }
}

pub fn own_rss() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split_whitespace().nth(1).and_then(|field| field.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

/// All but idle and iowait.
fn busy_ticks(stat: &str) -> u64 {
    let fields = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let busy = fields.take(8).enumerate().filter(|(n, _)| !matches!(n, 3 | 4));
    busy.filter_map(|(_, field)| field.parse::<u64>().ok()).sum()
}

/// Whole disks only: a partition's bytes are its disk's.
fn disk_bytes(diskstats: &str) -> (u64, u64) {
    let mut total = (0, 0);
    for line in diskstats.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (Some(name), Some(read), Some(written)) = (fields.get(2), fields.get(5), fields.get(9)) else { continue };
        if (name.starts_with("vd") || name.starts_with("sd")) && name.chars().all(|c| c.is_ascii_alphabetic()) {
            total.0 += read.parse::<u64>().unwrap_or(0) * 512;
            total.1 += written.parse::<u64>().unwrap_or(0) * 512;
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_is_no_use() {
        assert_eq!(busy_ticks("cpu  10 1 5 1000 50 0 2 0 0 0\ncpu0 1 1 1 1\n"), 18);
    }

    #[test]
    fn only_whole_disks_count() {
        let text = " 254 0 vda 5 0 8 0 2 0 16 0\n 254 1 vda1 5 0 8 0 2 0 16 0\n 7 0 loop0 1 1 1 1 1 1 1 1\n";
        assert_eq!(disk_bytes(text), (8 * 512, 16 * 512));
    }
}
