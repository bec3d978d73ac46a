//! Times the block formats on one core: `codec_speed VALUES.f32 [RUNS]`, one JSON object per format on standard output.
//! Processor time where the system tells it, so that a busy machine tells the truth.
//!
//! `scripts/bench_codecs.py` runs it beside ggml's quantizers on the same values.

use std::time::Instant;

use factoryline::codec::CODECS;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: codec_speed VALUES.f32 [RUNS]")?;
    let runs: usize = arguments.next().map_or(Ok(3), |n| n.parse())?;
    let raw = std::fs::read(path)?;
    let values: Vec<f32> = raw.as_chunks::<4>().0.iter().map(|raw| f32::from_le_bytes(*raw)).collect();
    for codec in CODECS.iter().filter(|codec| codec.dtype().block_elems() > 1) {
        let mut bytes = vec![0; codec.dtype().bytes_for(values.len())];
        let mut back = vec![0f32; values.len()];
        let encode = best(runs, || codec.encode(&values, &mut bytes));
        let decode = best(runs, || codec.decode(&bytes, &mut back));
        let off: f64 = values.iter().zip(&back).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let all: f64 = values.iter().map(|a| f64::from(*a).powi(2)).sum();
        println!(
            r#"{{"type":"{}","encode_s":{encode},"decode_s":{decode},"error":{}}}"#,
            codec.name().to_lowercase(),
            off / all
        );
    }
    Ok(())
}

/// Seconds of one run in the fastest of some rounds. A round is long enough for a clock that ticks in milliseconds.
fn best(runs: usize, mut run: impl FnMut()) -> f64 {
    let started = Instant::now();
    let now = || processor_seconds().unwrap_or_else(|| started.elapsed().as_secs_f64());
    let time = |_| {
        let (before, mut count) = (now(), 0u32);
        while now() - before < 0.15 {
            run();
            count += 1;
        }
        (now() - before) / f64::from(count)
    };
    (0..runs).map(time).fold(f64::INFINITY, f64::min)
}

/// Seconds this thread has run.
fn processor_seconds() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(text.split_whitespace().next()?.parse::<u64>().ok()? as f64 / 1e9)
}
