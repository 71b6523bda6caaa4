//! One channel of sound as a WAV file: what every provider reads, at a rate that loses nothing of speech.

/// Speech models listen at this rate; more is thinned out.
const SPEECH_RATE: u32 = 16_000;
const BYTES_PER_SAMPLE: u64 = 2;
const HEADER: u64 = 44;

/// Every how many samples one is kept: as many as divide the rate and leave enough of it.
fn thinning(rate: u32) -> u32 {
    (1..=rate / SPEECH_RATE).rev().find(|every| rate.is_multiple_of(*every)).unwrap_or(1)
}

/// The longest part that fits into so many bytes.
pub(super) fn longest_ms(rate: u32, largest: u64) -> u64 {
    let samples = largest.saturating_sub(HEADER) / BYTES_PER_SAMPLE;
    (samples * 1000 / u64::from(rate / thinning(rate)).max(1)).saturating_sub(1)
}

pub(super) fn milliseconds(frames: u64, rate: u32) -> u64 {
    let (frames, rate) = (u128::from(frames), u128::from(rate.max(1)));
    u64::try_from((frames * 1000 + rate / 2) / rate).unwrap_or(u64::MAX)
}

pub(super) fn frames(ms: u64, rate: u32) -> u64 {
    u64::try_from(u128::from(ms) * u128::from(rate) / 1000).unwrap_or(u64::MAX)
}

/// Samples on their way into a WAV file.
pub(super) struct Mono {
    rate: u32,
    every: usize,
    /// A low-pass filter: what a lower rate cannot hold would come back as noise.
    filter: Vec<f32>,
    /// Samples that the filter still needs.
    pending: Vec<f32>,
    data: Vec<u8>,
}

impl Mono {
    pub fn new(rate: u32) -> Self {
        let every = thinning(rate);
        let every_usize = usize::try_from(every).unwrap_or(1);
        let filter = low_pass(every_usize);
        // As much silence before the first sample as the filter looks back.
        let pending = vec![0.0; filter.len() / 2];
        Self { rate: rate / every, every: every_usize, filter, pending, data: Vec::new() }
    }

    pub fn add(&mut self, samples: &[f32]) {
        self.pending.extend_from_slice(samples);
        self.filter_what_is_there();
    }

    fn filter_what_is_there(&mut self) {
        let mut at = 0;
        while let Some(window) = self.pending.get(at..at + self.filter.len()) {
            let value: f32 = window.iter().zip(&self.filter).map(|(sample, weight)| sample * weight).sum();
            #[expect(clippy::cast_possible_truncation, reason = "clamped to its range")]
            let sample = (value.clamp(-1.0, 1.0) * f32::from(i16::MAX)).round() as i16;
            self.data.extend_from_slice(&sample.to_le_bytes());
            at += self.every;
        }
        self.pending.drain(..at.min(self.pending.len()));
    }

    /// The file; empty where nothing was added.
    pub fn into_wav(mut self) -> Vec<u8> {
        let tail = vec![0.0; self.filter.len() / 2];
        self.pending.extend(tail);
        self.filter_what_is_there();
        if self.data.is_empty() {
            return Vec::new();
        }
        let size = u32::try_from(self.data.len()).unwrap_or(u32::MAX);
        let mut file = Vec::with_capacity(self.data.len() + 44);
        file.extend_from_slice(b"RIFF");
        file.extend_from_slice(&size.saturating_add(36).to_le_bytes());
        file.extend_from_slice(b"WAVEfmt \x10\0\0\0\x01\0\x01\0");
        file.extend_from_slice(&self.rate.to_le_bytes());
        file.extend_from_slice(&(self.rate * 2).to_le_bytes());
        file.extend_from_slice(b"\x02\0\x10\0data");
        file.extend_from_slice(&size.to_le_bytes());
        file.extend_from_slice(&self.data);
        file
    }
}

/// A windowed sinc that keeps what a rate of one in `every` can hold; for every sample: one weight, itself.
fn low_pass(every: usize) -> Vec<f32> {
    if every <= 1 {
        return vec![1.0];
    }
    let half = 8 * every;
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let weight = |nth: usize| {
        let x = (nth as f32 - half as f32) / every as f32 * std::f32::consts::PI * 0.9;
        let sinc = if x == 0.0 { 1.0 } else { x.sin() / x };
        let window = 0.5 - 0.5 * (2.0 * std::f32::consts::PI * (nth + 1) as f32 / (2 * half + 2) as f32).cos();
        sinc * window
    };
    let weights: Vec<f32> = (0..=2 * half).map(weight).collect();
    let sum: f32 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tone(rate: u32, hertz: f32, frames: u16) -> Vec<f32> {
        #[expect(clippy::cast_precision_loss, reason = "a rate of sampling")]
        let step = std::f32::consts::TAU * hertz / rate as f32;
        (0..frames).map(|nth| (f32::from(nth) * step).sin() * 0.5).collect()
    }

    /// Samples of the file that a tone becomes, and how loud its middle is.
    fn check(rate: u32, hertz: f32, samples: usize, loud: bool) {
        let mut mono = Mono::new(rate);
        // In uneven pieces, as packets come.
        tone(rate, hertz, 48_000).chunks(1_111).for_each(|piece| mono.add(piece));
        let file = mono.into_wav();
        assert_eq!((file.len() - 44) / 2, samples, "{rate}");
        let middle = file[44..].as_chunks::<2>().0.iter().skip(samples / 4).take(samples / 2);
        let peak = middle.map(|pair| i16::from_le_bytes(*pair).unsigned_abs()).max().unwrap_or(0);
        assert_eq!(peak > 15_000, loud, "{rate} {hertz} {peak}");
        assert!(loud || peak < 400, "{rate} {hertz} {peak}");
    }

    #[test]
    fn speech_is_kept_and_what_would_become_noise_is_not() {
        check(48_000, 1_000.0, 16_000, true);
        check(48_000, 12_000.0, 16_000, false);
        check(44_100, 1_000.0, 24_000, true);
        check(16_000, 1_000.0, 48_000, true);
        check(8_000, 1_000.0, 48_000, true);
    }

    #[test]
    fn a_part_of_the_longest_length_fits() {
        for rate in [8_000, 16_000, 22_050, 44_100, 47_999, 48_000, 96_000] {
            let ms = longest_ms(rate, 1_000_000);
            let samples = frames(ms, rate).div_ceil(u64::from(thinning(rate)));
            assert!(HEADER + samples * BYTES_PER_SAMPLE <= 1_000_000, "{rate}");
            assert!(HEADER + (samples + u64::from(rate) / 10) * BYTES_PER_SAMPLE > 1_000_000, "{rate}");
        }
    }
}
