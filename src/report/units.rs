//! Numbers as people read them: three digits and a unit.

/// `1.82 G`, `11.7 M`, `512 `: three digits and the decimal prefix.
fn scaled(value: f64) -> String {
    const PREFIXES: [&str; 6] = ["", "k", "M", "G", "T", "P"];
    let mut value = value;
    let mut prefix = 0;
    // 999.5 would be shown as 1000.
    while value >= 999.5 && prefix + 1 < PREFIXES.len() {
        value /= 1000.0;
        prefix += 1;
    }
    let digits = match value {
        _ if prefix == 0 => 0,
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {}", PREFIXES[prefix])
}

pub fn bytes(bytes: u64) -> String {
    format!("{}B", scaled(bytes as f64))
}

pub fn flops(flops: u64) -> String {
    format!("{}FLOP", scaled(flops as f64))
}

pub fn count(count: usize) -> String {
    scaled(count as f64).trim_end().to_owned()
}

pub fn ms(ms: f64) -> String {
    match ms {
        v if v < 9.995 => format!("{v:.2} ms"),
        v if v < 99.95 => format!("{v:.1} ms"),
        v if v < 9_999.5 => format!("{v:.0} ms"),
        v => format!("{:.1} s", v / 1e3),
    }
}

/// `81.6 %`, of a share from 0 to 1.
pub fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// `0.82×`, `1.50×`, `12.3×`; a dash for what is no ratio.
pub fn times(ratio: f64) -> String {
    match ratio {
        r if !r.is_finite() => "–".to_owned(),
        r if r < 9.995 => format!("{r:.2}×"),
        r if r < 99.95 => format!("{r:.1}×"),
        r => format!("{r:.0}×"),
    }
}

/// `0.0014`, `1.5`, `61`: two digits, of a drift in nats.
pub fn nats(drift: f64) -> String {
    // The power of ten of the first digit, once the value is rounded to two.
    let power = format!("{drift:.1e}").rsplit('e').next().and_then(|power| power.parse().ok()).unwrap_or(0_i32);
    match drift {
        d if d < 1e-4 => "< 0.0001".to_owned(),
        d => format!("{d:.*}", usize::try_from(1 - power).unwrap_or(0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1000), "1.00 kB");
        assert_eq!(bytes(44_650_000), "44.6 MB");
        assert_eq!(bytes(999_600), "1.00 MB");
        assert_eq!(flops(1_819_000_000), "1.82 GFLOP");
        assert_eq!(flops(181_900_000_000), "182 GFLOP");
        assert_eq!(count(11_689_512), "11.7 M");
        assert_eq!(count(512), "512");
        assert_eq!([percent(0.0), percent(0.8159), percent(1.0)], ["0.0 %", "81.6 %", "100.0 %"]);
        assert_eq!([0.00142, 0.0996, 1.49, 9.99, 61.4].map(nats), ["0.0014", "0.10", "1.5", "10", "61"]);
        assert_eq!([0.0, 9e-5].map(nats), ["< 0.0001"; 2]);
        assert_eq!([0.816, 9.994, 12.34, 150.4].map(times), ["0.82×", "9.99×", "12.3×", "150×"]);
        assert_eq!(times(f64::NAN), "–");
        assert_eq!([ms(1.234), ms(12.34), ms(1234.0), ms(12340.0)], ["1.23 ms", "12.3 ms", "1234 ms", "12.3 s"]);
    }
}
