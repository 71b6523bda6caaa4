use super::super::recording::Container;
use super::super::sound::opus_microseconds;
use super::*;

#[test]
fn parts_end_where_it_is_quiet() {
    // Ten seconds of noise, quiet from 3.6 to 4 s and from 7.0 to 7.4 s.
    let quiet = |step: usize| (360..400).contains(&step) || (700..740).contains(&step);
    let steps = (0..1_000).map(|step| if quiet(step) { 0.0 } else { 1.0 }).collect();
    let parts = Loudness { steps, ..Loudness::default() }.parts(10_000, 4_000);
    let cuts: Vec<u64> = parts.iter().map(|part| part.to_ms).collect();
    assert!(matches!(cuts.as_slice(), [3_600..=4_000, 7_000..=7_400, 10_000]), "{cuts:?}");
}

/// An element of a Matroska file.
fn element(id: &[u8], content: &[u8]) -> Vec<u8> {
    let size = u32::try_from(content.len()).unwrap() | 0x1000_0000;
    [id, &size.to_be_bytes(), content].concat()
}

/// What a browser records: WebM without a length in its header, sound in Opus, a block for every 20 ms.
fn recorded(blocks: u16) -> Vec<u8> {
    let head = element(b"\x1a\x45\xdf\xa3", &element(b"\x42\x82", b"webm"));
    let scale = element(b"\x2a\xd7\xb1", &1_000_000_u32.to_be_bytes());
    let apps = [element(b"\x4d\x80", b"test"), element(b"\x57\x41", b"test")].concat();
    let info = element(b"\x15\x49\xa9\x66", &[scale, apps].concat());
    let codec = [element(b"\x86", b"A_OPUS"), element(b"\x63\xa2", b"OpusHead\x01\x01\0\0\x80\xbb\0\0\0\0\0")].concat();
    let sound = element(b"\xe1", &[element(b"\xb5", &48_000_f32.to_be_bytes()), element(b"\x9f", b"\x01")].concat());
    let about = [element(b"\xd7", b"\x01"), element(b"\x73\xc5", b"\x01"), element(b"\x83", b"\x02")].concat();
    let tracks = element(b"\x16\x54\xae\x6b", &element(b"\xae", &[about, codec, sound].concat()));
    let block =
        |nth: u16| element(b"\xa3", &[b"\x81".as_slice(), &(nth * 20).to_be_bytes(), b"\x80\xf8\xff\xfe"].concat());
    let blocks: Vec<u8> = (0..blocks).flat_map(block).collect();
    let cluster = element(b"\x1f\x43\xb6\x75", &[element(b"\xe7", b"\0"), blocks].concat());
    [head, b"\x18\x53\x80\x67\x01\xff\xff\xff\xff\xff\xff\xff".to_vec(), info, tracks, cluster].concat()
}

#[test]
fn what_cannot_be_decoded_is_as_long_as_its_packets_say() {
    let limits = PartLimits { longest_ms: 5_000, largest: 1 << 20 };
    let recording = measure(recorded(100), limits).expect("it is measured");
    assert_eq!((recording.container, recording.parts.len()), (Container::Webm, 0));
    assert!((1_980..=2_000).contains(&recording.ms), "{recording:?}");
    let words = "Opus cannot be cut, and it is longer than one request may be";
    assert_eq!(measure(recorded(300), limits), Err(broken(words)));
}

#[test]
fn noise_without_a_pause_is_cut_all_the_same() {
    let parts = Loudness { steps: vec![1.0; 1_000], ..Loudness::default() }.parts(10_000, 3_000);
    assert!(parts.len() <= 5 && parts.iter().all(|part| (1..=3_000).contains(&part.ms())), "{parts:?}");
    assert_eq!(parts.last().map(|part| part.to_ms), Some(10_000));
}

/// Three seconds: noise, then a quiet tone, so that a variable rate is far lower at the end than an estimate from the beginning.
const MP3: &[u8] = include_bytes!("../../../tests/fixtures/sound/tone.mp3");
const OGG: &[u8] = include_bytes!("../../../tests/fixtures/sound/tone.ogg");
const OPUS: &[u8] = include_bytes!("../../../tests/fixtures/sound/tone.opus");
const MP4: &[u8] = include_bytes!("../../../tests/fixtures/sound/tone.m4a");
/// Of the MP3 file: where its Xing header counts the frames, and where the first frame of sound begins.
const FRAMES: std::ops::Range<usize> = 21..25;
const SOUND: usize = 180;
const LIMITS: PartLimits = PartLimits { longest_ms: 60_000, largest: 1 << 20 };

#[track_caller]
fn check(file: &[u8], ms: std::ops::RangeInclusive<u64>) {
    let found = measure(file.to_vec(), LIMITS).expect("it is measured").ms;
    assert!(ms.contains(&found), "{found} is not in {ms:?}");
}

#[track_caller]
fn check_broken(file: Vec<u8>, words: &str) {
    let Answer::Failed(error) = listen(file, Listen::Measure(LIMITS)) else { panic!("it is heard") };
    assert_eq!(error, broken(words));
}

#[test]
fn what_a_header_says_of_the_whole_is_not_believed() {
    check(MP3, 3_000..=3_000);
    let mut lying = MP3.to_vec();
    lying[FRAMES].copy_from_slice(&[0, 0, 0, 1]);
    check(&lying, 3_000..=3_150);
    // Without a header, its reader would estimate the whole by the first frames.
    check(&MP3[SOUND..], 3_000..=3_150);
}

#[test]
fn recordings_that_were_joined_are_heard_to_the_end() {
    check(&[MP3, MP3].concat(), 6_000..=6_200);
    check(&[OGG, OGG].concat(), 6_000..=6_010);
    check(OPUS, 3_000..=3_020);
    check(&[OPUS, OPUS].concat(), 6_000..=6_040);
    check_broken([OPUS, OGG].concat(), "recordings of different codecs were joined to it");
    let last = Span { from_ms: 5_000, to_ms: 6_000 };
    let part = cut([OGG, OGG].concat(), last, LIMITS).expect("it is cut");
    assert_eq!(part.len(), 44 + 2 * 16_000);
    // Frames of another rate, which the decoder of the first ones does not take.
    let other = [b"\xff\xfb\x90\x00".as_slice(), &[0; 413]].concat().repeat(60);
    check_broken(
        [MP3, &other].concat(),
        "a stretch of it is damaged, or of another sampling rate or number of channels",
    );
}

#[test]
fn a_recording_that_is_cut_off_is_heard_up_to_there() {
    check(&MP4[..MP4.len() * 9 / 10], 2_500..=3_000);
    // As a recorder writes it that can go back to say how long it became.
    let mut whole = recorded(100);
    let segment = whole.windows(4).position(|id| id == b"\x18\x53\x80\x67").expect("a segment") + 4;
    let size = (whole.len() - segment - 8) as u64 | 1 << 56;
    whole[segment..segment + 8].copy_from_slice(&size.to_be_bytes());
    check(&whole, 1_980..=2_000);
    whole.truncate(whole.len() * 9 / 10);
    check(&whole, 1_700..=1_900);
    check_broken(MP4[..32].to_vec(), "it is cut off or damaged");
}

/// A second of 16-bit sound at that rate.
fn wav(rate: u32, channels: u16, sample: i16) -> Vec<u8> {
    let data = sample.to_le_bytes().repeat(16_000);
    let size = u32::try_from(data.len()).unwrap();
    let mut file = b"RIFF".to_vec();
    file.extend_from_slice(&(size + 36).to_le_bytes());
    file.extend_from_slice(b"WAVEfmt \x10\0\0\0\x01\0");
    file.extend_from_slice(&channels.to_le_bytes());
    file.extend_from_slice(&rate.to_le_bytes());
    file.extend_from_slice(&(rate * 2).to_le_bytes());
    file.extend_from_slice(&channels.wrapping_mul(2).to_le_bytes());
    file.extend_from_slice(b"\x10\0data");
    file.extend_from_slice(&size.to_le_bytes());
    file.extend_from_slice(&data);
    file
}

#[test]
fn a_wav_file_of_unknown_length_goes_on_to_its_end() {
    let mut streamed = wav(16_000, 1, 9);
    streamed[4..8].copy_from_slice(&36_u32.to_le_bytes());
    streamed[40..44].fill(0);
    check(&streamed, 1_000..=1_000);
}

#[test]
fn a_header_that_no_speech_has_fails_for_good() {
    check(&wav(16_000, 1, 1), 1_000..=1_000);
    check_broken(wav(1, 1, 9), "its sampling rate of 1 Hz is too low for speech");
    check_broken(wav(16_000, 1, 0), "it is silent throughout");
    let many = listen(wav(16_000, u16::MAX, 9), Listen::Measure(LIMITS));
    assert!(matches!(many, Answer::Failed(ReadError::Broken { .. })), "{many:?}");
}

#[test]
fn an_opus_packet_says_how_long_it_is() {
    for (packet, microseconds) in [
        (b"\x08".as_slice(), 20_000),
        (b"\x19", 120_000),
        (b"\x68", 20_000),
        (b"\xe0", 2_500),
        (b"\xfb\x83", 60_000),
        (b"\xfb", 0),
        (b"", 0),
    ] {
        assert_eq!(opus_microseconds(packet), microseconds, "{packet:?}");
    }
}
