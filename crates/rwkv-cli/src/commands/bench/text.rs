//! The report for people.

use super::break_even::BreakEven;
use super::report::{Cache, Report, WorkloadReport};
use crate::output;
use std::fmt::Write;

const UNKNOWN: &str = "not measured";

/// The whole report.
pub(super) fn of(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut text, report);
    text
}

/// The report of pruned models.
pub(super) fn of_pruned(report: &BreakEven) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write_pruned(&mut text, report);
    text
}

/// A table for each workload: a row for each share.
fn write_pruned(out: &mut String, report: &BreakEven) -> std::fmt::Result {
    let Some(first) = report.shares.first() else {
        return Ok(());
    };
    writeln!(out, "model     {}", first.dense.model.name)?;
    writeln!(out, "device    {}", first.dense.device.name)?;
    for (index, workload) in first.dense.workloads.iter().enumerate() {
        writeln!(
            out,
            "\n{:<14} {:>14} {:>14} {:>9} {:>15} {:>15}",
            workload.title(),
            "dense tokens/s",
            "csr tokens/s",
            "csr is",
            "dense bytes/tok",
            "csr bytes/tok"
        )?;
        for share in &report.shares {
            let of = |report: &Report| {
                let measured = report.workloads.get(index);
                let speed = measured.and_then(|w| Some(w.tokens_per_second.as_ref()?.median));
                (speed, measured.map_or(0.0, |w| w.weight_bytes_per_token))
            };
            let ((dense, dense_bytes), (csr, csr_bytes)) = (of(&share.dense), of(&share.csr));
            let gain = dense
                .zip(csr)
                .map(|(dense, csr)| format!("{}×", number(csr / dense)));
            writeln!(
                out,
                "{:<14} {:>14} {:>14} {:>9} {:>15} {:>15}",
                format!("pruned {}", percent(share.pruned)),
                dense.map_or_else(unknown, number),
                csr.map_or_else(unknown, number),
                gain.unwrap_or_else(unknown),
                size(dense_bytes),
                size(csr_bytes),
            )?;
        }
    }
    Ok(())
}

fn write(out: &mut String, report: &Report) -> std::fmt::Result {
    let model = &report.model;
    writeln!(
        out,
        "model     {}: {}, {} layers of {}, vocabulary {}{}",
        model.name,
        model.version,
        model.layers,
        model.width,
        model.vocab,
        model
            .quant
            .as_ref()
            .map_or_else(String::new, |quant| format!(", as {quant}")),
    )?;
    let device = &report.device;
    let what: Vec<_> = [&device.backend, &device.driver]
        .into_iter()
        .flatten()
        .map(String::as_str)
        .filter(|text| !text.is_empty())
        .collect();
    let what = if what.is_empty() {
        String::new()
    } else {
        format!(" ({})", what.join(", "))
    };
    let slow = match (report.debug_build, device.checks) {
        (true, _) => "; a debug build: its times mean little",
        (false, true) => "; with checks in shaders, which are slow",
        _ => "",
    };
    writeln!(out, "device    {}{what}{slow}", device.name)?;
    let reserved = report
        .device_memory
        .reserved_bytes
        .map_or_else(String::new, |n| format!(", {} reserved", output::bytes(n)));
    writeln!(
        out,
        "memory    device {}{reserved}; host {} of its own at the peak, {} with files",
        output::bytes(report.device_memory.used_bytes),
        bytes(report.host_memory.peak_private_bytes),
        bytes(report.host_memory.peak_resident_bytes),
    )?;
    write!(out, "loading   {:.2} s", report.load_seconds)?;
    match &report.pipelines {
        Some(p) => writeln!(
            out,
            "; pipelines ready in {:.2} s, {} compiled, {} of them kept by an earlier run; tuning {:.2} s, {} kernels tuned",
            p.seconds, p.compiled, p.kept, p.tuning_seconds, p.tuned_kernels
        )?,
        None => writeln!(out)?,
    }
    match &report.copy {
        Some(copy) => writeln!(
            out,
            "copy      {} read and written, {} by the {}'s clock",
            rate(copy.bytes_per_second),
            output::bytes(copy.buffer_bytes),
            copy.clock
        )?,
        None => writeln!(out, "copy      {UNKNOWN}")?,
    }
    if let Some(caches) = &report.caches {
        writeln!(
            out,
            "caches    plans {}; parameters {}; pipelines {}; buffers {}",
            hits(&caches.plans),
            hits(&caches.parameters),
            hits(&caches.pipelines),
            hits(&caches.buffer_pool),
        )?;
        let warm = |cache: &Cache| {
            cache
                .hit_rate_after_warm_up
                .map_or("none".to_owned(), percent)
        };
        writeln!(
            out,
            "          after the warm-up: plans {}; parameters {}; pipelines {}; buffers {}",
            warm(&caches.plans),
            warm(&caches.parameters),
            warm(&caches.pipelines),
            warm(&caches.buffer_pool),
        )?;
    }
    writeln!(
        out,
        "\n{} rounds after a warm-up; median (min to max)\n",
        report.repeat
    )?;
    speeds(out, &report.workloads)?;
    launches(out, &report.workloads)?;
    for workload in &report.workloads {
        kernels(out, workload)?;
    }
    Ok(())
}

fn speeds(out: &mut String, workloads: &[WorkloadReport]) -> std::fmt::Result {
    writeln!(
        out,
        "{:<14} {:>30} {:>13} {:>12} {:>8} {:>13}",
        "", "tokens/s", "weights/token", "read", "of copy", "GPU busy"
    )?;
    for w in workloads {
        let speed = w.tokens_per_second.map_or_else(
            || UNKNOWN.to_owned(),
            |s| {
                let [median, min, max] = [s.median, s.min, s.max].map(number);
                format!("{median} ({min} to {max})")
            },
        );
        writeln!(
            out,
            "{:<14} {speed:>30} {:>13} {:>12} {:>8} {:>13}",
            w.title(),
            size(w.weight_bytes_per_token),
            w.weight_bytes_per_second.map_or_else(unknown, rate),
            w.share_of_copy_bandwidth
                .map_or_else(|| "-".to_owned(), percent),
            w.gpu_busy.map_or_else(unknown, percent),
        )?;
    }
    Ok(())
}

fn launches(out: &mut String, workloads: &[WorkloadReport]) -> std::fmt::Result {
    if workloads.iter().all(|w| w.launches.is_none()) {
        return Ok(());
    }
    writeln!(
        out,
        "\n{:<14} {:>11} {:>9} {:>9} {:>9} {:>9} {:>13} {:>12}",
        "a token", "dispatches", "record", "submit", "wait", "rest", "GPU", "new buffers"
    )?;
    for w in workloads {
        let Some(host) = &w.launches else { continue };
        let micros = |us: f64| format!("{} µs", number(us));
        writeln!(
            out,
            "{:<14} {:>11} {:>9} {:>9} {:>9} {:>9} {:>13} {:>12}",
            w.title(),
            number(host.dispatches_per_token),
            micros(host.record_microseconds_per_token),
            micros(host.submit_microseconds_per_token),
            micros(host.wait_microseconds_per_token),
            micros(host.rest_microseconds_per_token),
            w.gpu_microseconds_per_token.map_or_else(unknown, micros),
            host.buffers_made_after_warm_up,
        )?;
    }
    Ok(())
}

fn kernels(out: &mut String, workload: &WorkloadReport) -> std::fmt::Result {
    let Some(kernels) = &workload.kernels else {
        return Ok(());
    };
    let title = format!("kernels of {}", workload.title());
    let width = kernels
        .iter()
        .map(|k| k.name.chars().count())
        .max()
        .unwrap_or(0)
        .max(title.chars().count());
    writeln!(
        out,
        "\n{title:<width$} {:>8} {:>12} {:>7} {:>10}",
        "count", "total", "share", "mean"
    )?;
    for k in kernels {
        writeln!(
            out,
            "{:<width$} {:>8} {:>9.3} ms {:>7} {:>7.2} µs",
            k.name,
            k.count,
            k.total_microseconds / 1e3,
            percent(k.share),
            k.mean_microseconds,
        )?;
    }
    Ok(())
}

fn unknown() -> String {
    UNKNOWN.to_owned()
}

fn bytes(n: Option<u64>) -> String {
    n.map_or_else(unknown, output::bytes)
}

fn size(bytes: f64) -> String {
    #[allow(clippy::cast_possible_truncation, reason = "shown to three digits")]
    let whole = bytes.round() as u64;
    output::bytes(whole)
}

fn rate(bytes_per_second: f64) -> String {
    format!("{} GB/s", number(bytes_per_second / 1e9))
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// `hits of requests`, in per cent.
fn hits(cache: &Cache) -> String {
    let requests = cache.hits + cache.misses;
    match cache.hit_rate {
        Some(hit) => format!("{} of {requests}", percent(hit)),
        None => "none".to_owned(),
    }
}

/// Three significant digits, or all of those before the point.
fn number(x: f64) -> String {
    let digits = match x.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        _ => 2,
    };
    format!("{x:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        #[track_caller]
        fn check(x: f64, want: &str) {
            assert_eq!(number(x), want);
        }
        check(0.0, "0.00");
        check(9.876, "9.88");
        check(12.34, "12.3");
        check(1234.6, "1235");
    }
}
